"""The loss of one token."""

from __future__ import annotations


def ppo_clip(ratio, advantage, *, low, high, dual=None):
    """Returns the loss of one token, -min(r A, clip(r) A), with dual clip if given (arXiv:1912.09729, equation 5).

    >>> ppo_clip(1.5, 1.0, low=0.25, high=0.25), ppo_clip(4.0, -1.0, low=0.25, high=0.25, dual=3.0)
    (-1.25, 3.0)
    """
    kept = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    if dual is not None and advantage < 0:
        kept = max(kept, dual * advantage)
    return -kept

"""The critic's loss of one token, and how well a critic explains the returns."""

from __future__ import annotations

import numpy as np


def clipped_value(value, old, returns, *, clip):
    """Returns half the larger squared error, with and without the clip (PPO as first implemented; arXiv:2005.12729).

    >>> clipped_value(3.0, 0.0, 3.0, clip=0.5)
    3.125
    """
    free = (value - returns) ** 2
    if clip is None:
        return free / 2
    held = min(max(value, old - clip), old + clip)
    return max(free, (held - returns) ** 2) / 2


def explained_variance(value, returns, mask):
    """Returns 1 - Var(R - V) / Var(R) over the scored tokens, 0 where the returns do not vary.

    >>> explained_variance([1.0, 2.0], [1.0, 3.0], [True, True])
    0.75
    """
    value, returns = np.asarray(value, np.float64), np.asarray(returns, np.float64)
    pairs = [(value[i], returns[i]) for i in map(tuple, np.argwhere(mask))]
    total = np.var([r for _, r in pairs]) if len({r for _, r in pairs}) > 1 else 0.0
    return float(1.0 - np.var([r - v for v, r in pairs]) / total) if total else 0.0

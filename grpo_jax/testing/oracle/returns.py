"""Rewards of single tokens `[B, T]`."""

from __future__ import annotations

import numpy as np


def reward_with_kl(reward, kl, mask, *, coef):
    """Returns the reward of each token [B, T] with a KL penalty (InstructGPT, arXiv:2203.02155, 3.5).

    >>> reward_with_kl([1.0], [[0.5, 0.5]], [[True, True]], coef=0.5).tolist()
    [[-0.25, 0.75]]
    """
    out = np.zeros(np.shape(kl))
    for b in range(len(out)):
        scored = np.flatnonzero(mask[b])
        for t in scored:
            out[b, t] = -coef * kl[b][t] + (reward[b] if t == scored[-1] else 0.0)
    return out

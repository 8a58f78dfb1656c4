"""Advantages of one group `[G]`."""

from __future__ import annotations

import math

import numpy as np


def group_advantage(reward, valid=None, *, ddof=1, eps=1e-6):
    """Returns (r - mean) / (std + eps) over the valid entries of one group (DeepSeekMath, arXiv:2402.03300, 4.1.2).

    Entries that are not valid or not finite get 0, and so does everything when fewer than two rewards differ.

    >>> group_advantage([1, 0, 0, 0]).round(6).tolist()
    [1.499997, -0.499999, -0.499999, -0.499999]
    """
    reward = np.asarray(reward, np.float64)
    valid = np.ones(reward.shape, bool) if valid is None else np.asarray(valid)
    counted = [i for i in range(len(reward)) if valid[i] and math.isfinite(reward[i])]
    advantage = np.zeros(len(reward))
    if len({reward[i] for i in counted}) < 2:
        return advantage
    mean = sum(reward[i] for i in counted) / len(counted)
    std = math.sqrt(sum((reward[i] - mean) ** 2 for i in counted) / (len(counted) - ddof))
    for i in counted:
        advantage[i] = (reward[i] - mean) / (std + eps)
    return advantage


def process_advantage(step_reward, step_end, step_valid, *, length, ddof=1, eps=1e-6):
    """Returns the advantage [G, T] of process supervision (DeepSeekMath, arXiv:2402.03300, 4.1.3) for one group.

    >>> process_advantage([[1.0], [0.0]], [[1], [0]], [[True], [True]], length=2, ddof=0, eps=0.0).tolist()
    [[1.0, 1.0], [-1.0, 0.0]]
    """
    step_reward, step_end, step_valid = map(np.asarray, (step_reward, step_end, step_valid))
    flat = group_advantage(step_reward.ravel(), step_valid.ravel(), ddof=ddof, eps=eps).reshape(step_reward.shape)
    advantage = np.zeros((len(step_reward), length))
    for g, t in np.ndindex(*advantage.shape):
        for k in range(step_reward.shape[1]):
            if step_valid[g, k] and step_end[g, k] >= t:
                advantage[g, t] += flat[g, k]
    return advantage

"""Advantages of one group `[G]`, or of a whole batch `[P, G]` where its statistics are used."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np


def group_advantage(reward, valid=None, *, ddof=1, eps=1e-6):
    """Returns (r - mean) / (std + eps) over the valid entries of one group (DeepSeekMath, arXiv:2402.03300, 4.1.2).

    Entries that are not valid or not finite get 0, and so does everything when fewer than two rewards differ.

    >>> group_advantage([1, 0, 0, 0]).round(6).tolist()
    [1.499997, -0.499999, -0.499999, -0.499999]
    """
    reward, counted = _counted(reward, valid)
    advantage = np.zeros(len(reward))
    if len({reward[i] for i in counted}) < 2 or len(counted) <= ddof:
        return advantage
    mean = sum(reward[i] for i in counted) / len(counted)
    std = math.sqrt(sum((reward[i] - mean) ** 2 for i in counted) / (len(counted) - ddof))
    for i in counted:
        advantage[i] = (reward[i] - mean) / (std + eps)
    return advantage


def process_advantage(step_reward, step_end, step_valid, *, length, ddof=1, eps=1e-6, mask=None):
    """Returns the advantage [G, T] of process supervision (DeepSeekMath, arXiv:2402.03300, 4.1.3) for one group.

    >>> process_advantage([[1.0], [0.0]], [[1], [0]], [[True], [True]], length=2, ddof=0, eps=0.0).tolist()
    [[1.0, 1.0], [-1.0, 0.0]]
    """
    step_reward, step_end, step_valid = map(np.asarray, (step_reward, step_end, step_valid))
    flat = group_advantage(step_reward.ravel(), step_valid.ravel(), ddof=ddof, eps=eps).reshape(step_reward.shape)
    advantage = np.zeros((len(step_reward), length))
    for g, t in np.ndindex(*advantage.shape):
        for k in range(step_reward.shape[1]):
            if step_valid[g, k] and step_end[g, k] >= t and (mask is None or mask[g][t]):
                advantage[g, t] += flat[g, k]
    return advantage


def centred(reward, valid=None):
    """Returns r - mean over the valid entries of one group (Dr. GRPO, arXiv:2503.20783).

    >>> centred([1, 0, 0, 0]).tolist()
    [0.75, -0.25, -0.25, -0.25]
    """
    reward, counted = _counted(reward, valid)
    advantage = np.zeros(len(reward))
    for i in counted:
        advantage[i] = reward[i] - sum(reward[j] for j in counted) / len(counted)
    return _silent(advantage, reward, counted)


def leave_one_out(reward, valid=None):
    """Returns r - mean of the other valid entries of one group (RLOO, arXiv:2402.14740).

    >>> leave_one_out([3, 0, 0, 0]).tolist()
    [3.0, -1.0, -1.0, -1.0]
    """
    reward, counted = _counted(reward, valid)
    advantage = np.zeros(len(reward))
    for i in counted:
        others = [reward[j] for j in counted if j != i]
        advantage[i] = reward[i] - sum(others) / len(others) if others else 0.0
    return _silent(advantage, reward, counted)


def mean_scaled(reward, valid=None):
    """Returns r / mean - 1 over the valid entries of one group, 0 without a positive mean (MaxRL, arXiv:2602.02710).

    >>> mean_scaled([1, 0, 0, 0]).tolist()
    [3.0, -1.0, -1.0, -1.0]
    """
    reward, counted = _counted(reward, valid)
    advantage = np.zeros(len(reward))
    total = sum(reward[i] for i in counted)
    for i in counted:
        advantage[i] = reward[i] * len(counted) / total - 1.0 if total > 0 else 0.0
    return _silent(advantage, reward, counted)


def greedy_baseline(reward, greedy, valid=None):
    """Returns r - greedy of one group, 0 where the greedy reward is not finite (ReMax, arXiv:2310.10505).

    >>> greedy_baseline([1, 0], 0.25).tolist()
    [0.75, -0.25]
    """
    reward, counted = _counted(reward, valid)
    advantage = np.zeros(len(reward))
    for i in counted:
        advantage[i] = reward[i] - greedy if math.isfinite(greedy) else 0.0
    return advantage


def length_weighted(reward, mask, valid=None):
    """Returns r - sum(l r) / sum(l) over the valid entries of one group (OPO, arXiv:2505.23585).

    >>> length_weighted([1, 0], [[True] * 3, [True, False, False]]).tolist()
    [0.25, -0.75]
    """
    reward, counted = _counted(reward, valid)
    length = [sum(map(bool, row)) for row in mask]
    counted = [i for i in counted if length[i]]
    advantage = np.zeros(len(reward))
    for i in counted:
        baseline = sum(length[j] * reward[j] for j in counted) / sum(length[j] for j in counted)
        advantage[i] = reward[i] - baseline
    return _silent(advantage, reward, counted)


def pass_at_k(reward, valid=None, *, k, threshold=0.5):
    """Returns the analytical advantage of one group (Pass@k Training, arXiv:2508.10751), by exact binomials.

    >>> pass_at_k([1, 0, 0, 0], k=2).round(4).tolist()
    [1.0, -0.3333, -0.3333, -0.3333]
    """
    reward, counted = _counted(reward, valid)
    advantage = np.zeros(len(reward))
    n, negative = len(counted), sum(reward[i] <= threshold for i in counted)
    if n < k or negative < k or negative == n:
        return advantage
    fail = Fraction(math.comb(negative, k), math.comb(n, k))
    sigma = math.sqrt(fail * (1 - fail))
    for i in counted:
        if reward[i] > threshold:
            advantage[i] = float(fail) / sigma
        else:
            advantage[i] = float(fail - Fraction(math.comb(negative - 1, k - 1), math.comb(n - 1, k - 1))) / sigma
    return advantage


def batch_scaled(reward, valid, *, ddof=1, eps=1e-6):
    """Returns (r - mean of the group) / (std of the batch + eps) for a batch [P, G] (TRL; arXiv:2508.08221).

    >>> batch_scaled([[1.0, 5.0], [5.0, 1.0]], [[True] * 2] * 2, ddof=0, eps=0.0).tolist()
    [[-1.0, 1.0], [1.0, -1.0]]
    """
    rewards = [row[i] for row, counted in map(_counted, reward, valid) for i in counted]
    advantage = np.array([centred(*pair) for pair in zip(reward, valid, strict=True)])
    if len(set(rewards)) < 2 or len(rewards) <= ddof:
        return np.zeros_like(advantage)
    return advantage / (_deviation(rewards, ddof) + eps)


def zero_variance_rescaled(reward, valid):
    """Returns B / (B - M) (r - mean of the group) for a batch [P, G]; M groups of B do not differ (arXiv:2504.02546).

    >>> zero_variance_rescaled([[1, 0], [1, 1]], [[True] * 2] * 2).tolist()
    [[1.0, -1.0], [0.0, 0.0]]
    """
    groups = [{row[i] for i in counted} for row, counted in map(_counted, reward, valid)]
    present, differing = sum(len(g) > 0 for g in groups), sum(len(g) > 1 for g in groups)
    advantage = np.array([centred(*pair) for pair in zip(reward, valid, strict=True)])
    return advantage * (present / differing) if differing else np.zeros_like(advantage)


def term_advantage(term_reward, term_weight, valid, *, ddof=1, eps=1e-6, batch=True):
    """Returns the advantage of a batch [P, G, K] of reward terms (GDPO, arXiv:2601.05242).

    >>> terms = [[[0.0, 10.0], [1.0, 10.0], [0.0, 30.0], [1.0, 30.0]]]
    >>> term_advantage(terms, [1.0, 0.5], [[True] * 4], ddof=0, eps=0.0, batch=False).tolist()
    [[-1.5, 0.5, -0.5, 1.5]]
    """
    term_reward = np.asarray(term_reward, np.float64)
    total = np.zeros(term_reward.shape[:2])
    for p, k in np.ndindex(term_reward.shape[0], term_reward.shape[2]):
        total[p] += term_weight[k] * group_advantage(term_reward[p, :, k], valid[p], ddof=ddof, eps=eps)
    if not batch:
        return total
    anything = np.asarray(valid) & np.isfinite(term_reward).any(-1)
    return group_advantage(total.ravel(), anything.ravel(), ddof=ddof, eps=eps).reshape(total.shape)


def _counted(reward, valid=None):
    """Returns the rewards in float64, and the indices of those that count."""
    reward = np.asarray(reward, np.float64)
    return reward, [i for i in range(len(reward)) if (valid is None or valid[i]) and math.isfinite(reward[i])]


def _silent(advantage, reward, counted):
    """Returns the advantage, all 0 unless two rewards differ."""
    return advantage if len({reward[i] for i in counted}) > 1 else np.zeros(len(reward))


def _deviation(numbers, ddof):
    mean = sum(numbers) / len(numbers)
    return math.sqrt(sum((x - mean) ** 2 for x in numbers) / (len(numbers) - ddof))

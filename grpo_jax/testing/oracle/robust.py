"""Group robust preference optimization: the weights of groups, and the loss under them."""

from __future__ import annotations

import math

import numpy as np


def exponentiated_gradient(weights, losses, *, step):
    """Returns the weights after a step; a loss of None is a group without data (arXiv:2405.20304, algorithm 1).

    >>> exponentiated_gradient([0.5, 0.5], [0.0, None], step=1.0)
    [0.5, 0.5]
    """
    gains = [0.0 if loss is None else step * float(loss) for loss in losses]
    most = max(gain for weight, gain in zip(weights, gains, strict=True) if weight > 0)
    raised = [
        float(weight) * math.exp(gain - most) if weight > 0 else 0.0
        for weight, gain in zip(weights, gains, strict=True)
    ]
    return [value / math.fsum(raised) for value in raised]


def project_simplex(x):
    """Returns the nearest point of the simplex: bisection on tau in sum max(x - tau, 0) = 1.

    >>> [round(p, 6) for p in project_simplex([2.0, 0.0]).tolist()]
    [1.0, 0.0]
    """
    x = np.asarray(x, np.float64)
    low, high = x.max() - 1.0, x.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(x - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(x - (low + high) / 2, 0)


def group_means(losses, groups, scored, *, number):
    """Returns the mean loss of each group, None for a group without a scored pair.

    >>> group_means([1.0, 3.0, 5.0], [0, 0, 2], [True, True, True], number=3)
    [2.0, None, 5.0]
    """
    means = []
    for g in range(number):
        own = [float(value) for value, k, s in zip(losses, groups, scored, strict=True) if s and k == g]
        means.append(math.fsum(own) / len(own) if own else None)
    return means


def group_robust_loss(losses, groups, scored, *, weights):
    """Returns sum_g alpha_g L_g over the groups of a batch (arXiv:2405.20304, equation 6).

    >>> group_robust_loss([1.0, 3.0, 5.0], [0, 0, 1], [True, True, True], weights=[0.25, 0.75])
    4.25
    """
    means = group_means(losses, groups, scored, number=len(weights))
    return math.fsum(w * mean for w, mean in zip(weights, means, strict=True) if mean is not None)

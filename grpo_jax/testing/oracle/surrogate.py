"""The loss of one token, of one sequence, and the tokens of a batch that are chosen."""

from __future__ import annotations

import math

import numpy as np


def ppo_clip(ratio, advantage, *, low, high, dual=None):
    """Returns the loss of one token, -min(r A, clip(r) A), with dual clip if given (arXiv:1912.09729, equation 5).

    >>> ppo_clip(1.5, 1.0, low=0.25, high=0.25), ppo_clip(4.0, -1.0, low=0.25, high=0.25, dual=3.0)
    (-1.25, 3.0)
    """
    kept = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    if dual is not None and advantage < 0:
        kept = max(kept, dual * advantage)
    return -kept


def two_sided_clip(ratio, advantage, *, low, high, delta):
    """Returns the loss of one token, -min(min(r, delta) A, clip(r) A) (INTELLECT-2, arXiv:2505.07291).

    >>> two_sided_clip(8.0, -1.0, low=0.25, high=0.25, delta=4.0)
    4.0
    """
    return -min(min(ratio, delta) * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def cispo(ratio, advantage, logp, *, lower=-math.inf, upper=math.inf):
    """Returns the loss of one token, its weight kept in [lower, upper] (arXiv:2506.13585; arXiv:2510.13786).

    >>> cispo(8.0, 1.0, -1.0, upper=5.0)
    5.0
    """
    return -min(max(ratio, lower), upper) * advantage * logp


def sapo(ratio, advantage, *, positive, negative):
    """Returns the loss of one token, -(4 / tau) sigmoid(tau (r - 1)) A (arXiv:2511.20347).

    >>> sapo(1.0, 3.0, positive=2.0, negative=1.0)
    -3.0
    """
    tau = positive if advantage > 0 else negative
    x = tau * (ratio - 1)
    sigmoid = 1 / (1 + math.exp(-x)) if x > -700 else 0.0
    return -4 / tau * sigmoid * advantage


def vespo(ratios, advantages, logps, *, k_positive, lambda_positive, k_negative, lambda_negative):
    """Returns the losses of one sequence, -w^k exp(lambda (1 - w)) A log pi, w = prod r (arXiv:2602.10693).

    >>> vespo([2.0, 0.5], [1.0, 1.0], [-1.0, -2.0], k_positive=2, lambda_positive=3, k_negative=3, lambda_negative=2)
    [1.0, 2.0]
    """
    weight = math.prod(ratios)
    losses = []
    for advantage, logp in zip(advantages, logps, strict=True):
        k, decay = (k_positive, lambda_positive) if advantage > 0 else (k_negative, lambda_negative)
        losses.append(-(weight**k) * math.exp(decay * (1 - weight)) * advantage * logp)
    return losses


def geometric_mean(ratios, advantage, *, low, high):
    """Returns the loss of one sequence with one advantage, minus the geometric mean of its clipped ratios times A.

    Each ratio is the r' that makes r' A the smaller of r A and clip(r, e^-low, e^high) A (arXiv:2507.20673).

    >>> geometric_mean([2.0, 4.5], 1.0, low=2.0, high=2.0)
    -3.0
    """
    product = 1.0
    for ratio in ratios:
        clipped = min(max(ratio, math.exp(-low)), math.exp(high))
        product *= ratio if ratio * advantage <= clipped * advantage else clipped
    return -(product ** (1 / len(ratios))) * advantage


def covariances(logps, advantages):
    """Returns (log pi - mean)(A - mean) of each token of a batch (arXiv:2505.22617).

    >>> covariances([-1.0, -3.0], [2.0, -2.0])
    [2.0, 2.0]
    """
    mean_logp, mean_advantage = sum(logps) / len(logps), sum(advantages) / len(advantages)
    return [(p - mean_logp) * (a - mean_advantage) for p, a in zip(logps, advantages, strict=True)]


def kl_cov(ratio, advantage, chosen, *, coef):
    """Returns the loss of one token, -r A, with coef |log r| on a chosen one (arXiv:2505.22617).

    >>> kl_cov(1.0, 2.0, True, coef=1.0)
    -2.0
    """
    return -ratio * advantage + (coef * abs(math.log(ratio)) if chosen else 0.0)


def binary_tv(prob, old_prob):
    """Returns half the L1 distance of (p, 1 - p) and (q, 1 - q) (arXiv:2602.04879).

    >>> binary_tv(0.75, 0.5)
    0.25
    """
    return (abs(prob - old_prob) + abs((1 - prob) - (1 - old_prob))) / 2


def binary_kl(prob, old_prob):
    """Returns KL of (p, 1 - p) from (q, 1 - q), where q is the old policy's (arXiv:2602.04879).

    >>> binary_kl(0.5, 0.5), binary_kl(0.5, 1.0) == math.log(2)
    (0.0, True)
    """
    total = 0.0
    for q, p in ((old_prob, prob), (1 - old_prob, 1 - prob)):
        if q > 0:
            total += q * math.log(q / p) if p > 0 else math.inf
    return total


def dppo(prob, old_prob, advantage, *, limit, divergence):
    """Returns the loss of one token: -r A, 0 where it moves away beyond the limit (arXiv:2602.04879).

    >>> dppo(0.75, 0.5, 1.0, limit=0.2, divergence=binary_tv), dppo(0.75, 0.5, -1.0, limit=0.2, divergence=binary_tv)
    (0.0, 1.5)
    """
    away = (advantage > 0 and prob > old_prob) or (advantage < 0 and prob < old_prob)
    if away and divergence(prob, old_prob) > limit:
        return 0.0
    return -prob / old_prob * advantage


def at_or_above_quantile(values, quantile):
    """Returns which values are at or above a quantile, interpolated linearly; ties all count (arXiv:2506.01939).

    >>> at_or_above_quantile([0.1, 0.4, 0.3], 0.5)
    [False, True, True]
    """
    threshold = np.quantile(np.asarray(values, np.float64), quantile)
    return [bool(value >= threshold) for value in values]

"""Weights and rejections for a sampler that differs from the trainer, on rows `[B, T]`."""

from __future__ import annotations

import math

import numpy as np


def _exp(x):
    return math.exp(x) if x < 700 else math.inf


def truncated(old_logp, sampler_logp, mask, *, cap, whole_sequence=False):
    """Returns min(pi_old / mu, cap) of tokens or of whole completions, 0 on padding (Yao et al. 2025, TIS).

    >>> truncated([[0.0, 0.0]], [[-9.0, 0.0]], [[True, True]], cap=2.0).tolist()
    [[2.0, 1.0]]
    """
    out = np.zeros(np.shape(old_logp))
    for b, t, ratio in _ratios(old_logp, sampler_logp, mask, whole_sequence):
        out[b, t] = min(ratio, cap)
    return out


def banded(old_logp, sampler_logp, mask, *, low, high, whole_sequence=False):
    """Returns pi_old / mu where it lies in [low, high], and 0 elsewhere (IcePop, arXiv:2510.18855).

    >>> banded([[0.0, 0.0]], [[-9.0, 0.0]], [[True, True]], low=0.5, high=5.0).tolist()
    [[0.0, 1.0]]
    """
    out = np.zeros(np.shape(old_logp))
    for b, t, ratio in _ratios(old_logp, sampler_logp, mask, whole_sequence):
        out[b, t] = ratio if low <= ratio <= high else 0.0
    return out


def rejected(old_logp, sampler_logp, mask, *, estimator, limit, whole_sequence=False):
    """Returns True on the tokens, or completions, where |KL(mu || pi_old)| is estimated within the limit (verl).

    `estimator` is "k1", "k2" or "k3", on samples from mu.

    >>> rejected([[0.0, 0.0]], [[0.5, 0.1]], [[True, True]], estimator="k1", limit=0.2).tolist()
    [[False, True]]
    """
    keep = np.zeros(np.shape(old_logp), bool)
    for b in range(len(keep)):
        scored = np.flatnonzero(mask[b])
        estimates = [_divergence(estimator, float(sampler_logp[b][t]), float(old_logp[b][t])) for t in scored]
        for t, own in zip(scored, estimates, strict=True):
            keep[b, t] = abs(sum(estimates) / len(scored) if whole_sequence else own) <= limit
    return keep


def off_policy_mask(logp, sampler_logp, mask, advantage, *, limit):
    """Returns 0 on bad tokens of rows with mean log(mu / pi) above the limit, else 1 (DeepSeek-V3.2, arXiv:2512.02556).

    >>> off_policy_mask([[-2.0]], [[-1.0]], [[True]], [[-1.0]], limit=0.5).tolist()
    [[0.0]]
    """
    weight = np.zeros(np.shape(logp))
    for b in range(len(weight)):
        scored = np.flatnonzero(mask[b])
        for t in scored:
            moved = sum(float(sampler_logp[b][u]) - float(logp[b][u]) for u in scored) / len(scored)
            weight[b, t] = 0.0 if advantage[b][t] < 0 and moved > limit else 1.0
    return weight


def _ratios(old_logp, sampler_logp, mask, whole_sequence):
    for b in range(len(mask)):
        scored = np.flatnonzero(mask[b])
        for t in scored:
            compared = scored if whole_sequence else [t]
            yield b, t, _exp(sum(float(old_logp[b][u]) - float(sampler_logp[b][u]) for u in compared))


def _divergence(estimator, log_mu, log_old):
    if estimator == "k1":
        return log_mu - log_old
    if estimator == "k2":
        return (log_mu - log_old) ** 2 / 2
    return _exp(log_old - log_mu) - 1 - (log_old - log_mu)

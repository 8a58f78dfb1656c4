"""Rewards of single tokens `[B, T]`, and what they add up to."""

from __future__ import annotations

import math

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


def discounted_returns(token_reward, mask, *, gamma):
    """Returns the sum over later scored tokens of gamma^n r, n scored tokens later (Sutton and Barto, section 3.3).

    >>> discounted_returns([[1.0, 9.0, 4.0]], [[True, False, True]], gamma=0.5).tolist()
    [[3.0, 0.0, 4.0]]
    """
    out = np.zeros(np.shape(mask))
    for b in range(len(out)):
        scored = np.flatnonzero(mask[b])
        for n, t in enumerate(scored):
            out[b, t] = sum(gamma**i * float(token_reward[b][s]) for i, s in enumerate(scored[n:]))
    return out


def gae(token_reward, value, mask, *, gamma, lam):
    """Returns the sum over later scored tokens of (gamma lam)^n delta, and it plus value (arXiv:1506.02438, eq. 16).

    >>> gae([[0.0, 1.0]], [[0.5, 0.25]], [[True, True]], gamma=1.0, lam=0.0)[0].tolist()
    [[-0.25, 0.75]]
    """
    advantage, returns = np.zeros(np.shape(mask)), np.zeros(np.shape(mask))
    for b in range(len(advantage)):
        scored = np.flatnonzero(mask[b])
        v = [float(value[b][t]) for t in scored] + [0.0]
        delta = [float(token_reward[b][t]) + gamma * v[n + 1] - v[n] for n, t in enumerate(scored)]
        for n, t in enumerate(scored):
            advantage[b, t] = sum((gamma * lam) ** (m - n) * delta[m] for m in range(n, len(scored)))
            returns[b, t] = advantage[b, t] + v[n]
    return advantage, returns


def whiten(x, mask, *, eps=1e-8, centre=True):
    """Returns (x - mean) / sqrt(var + eps) over all scored entries, var by n - 1 (arXiv:1909.08593's whitening).

    >>> whiten([[1.0, 2.0], [3.0, 9.0]], [[True, True], [True, False]], eps=0.0).tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    """
    scored = [tuple(i) for i in np.argwhere(mask)]
    numbers = [float(np.asarray(x)[i]) for i in scored]
    out = np.zeros(np.shape(mask))
    if not numbers:
        return out
    mean = sum(numbers) / len(numbers)
    for i, number in zip(scored, numbers, strict=True):
        if len(set(numbers)) > 1:
            variance = sum((y - mean) ** 2 for y in numbers) / (len(numbers) - 1)
            out[i] = (number - mean) / math.sqrt(variance + eps)
        if not centre:
            out[i] += mean
    return out

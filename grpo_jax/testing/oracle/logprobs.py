"""The softmax and what is read from it."""

from __future__ import annotations

import numpy as np


def log_softmax(logits):
    """Returns z - log sum exp z over the last axis.

    >>> log_softmax([0.0, 0.0]).round(4).tolist()
    [-0.6931, -0.6931]
    """
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def token_logprobs(hidden, head, targets, *, temperature=1.0, soft_cap=None):
    """Returns the log-probabilities of the targets, and those of the whole vocabulary.

    With a soft cap c, `c tanh(z / c)` stands in place of every logit z, before the temperature.

    >>> token_logprobs(np.zeros((1, 2)), np.ones((2, 4)), np.array([3]))[0].round(4).tolist()
    [-1.3863]
    """
    hidden, head = np.asarray(hidden, np.float64), np.asarray(head, np.float64)
    logits = hidden @ head
    if soft_cap is not None:
        logits = soft_cap * np.tanh(logits / soft_cap)
    logp_V = log_softmax(logits / temperature)
    logp = np.zeros(np.shape(targets))
    for index in np.ndindex(*logp.shape):
        logp[index] = logp_V[(*index, targets[index])]
    return logp, logp_V


def entropy(logp_V):
    """Returns -sum_v p_v log p_v over the last axis, with 0 log 0 = 0.

    >>> entropy(np.array([0.0, -np.inf])).tolist()
    0.0
    """
    p = np.exp(np.asarray(logp_V, np.float64))
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(axis=-1) + 0.0


def kl_divergence(logp_V, ref_logp_V):
    """Returns sum_v p_v log(p_v / q_v) over the last axis, with 0 log 0 = 0.

    >>> round(float(kl_divergence(np.log([0.5, 0.5]), np.log([0.25, 0.75]))), 4)
    0.1438
    """
    p, q = np.exp(np.asarray(logp_V, np.float64)), np.exp(np.asarray(ref_logp_V, np.float64))
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0) / np.where(p > 0, q, 1.0)), 0.0).sum(axis=-1)

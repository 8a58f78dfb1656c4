"""Estimators of the KL of single tokens."""

from __future__ import annotations

import numpy as np


def k1(logp, ref_logp):
    """Returns log(pi / pi_ref).

    >>> float(k1(-1.0, -1.5))
    0.5
    """
    return np.asarray(logp, np.float64) - np.asarray(ref_logp, np.float64)


def k2(logp, ref_logp):
    """Returns log(pi / pi_ref)^2 / 2.

    >>> float(k2(-1.0, -2.0))
    0.5
    """
    return k1(logp, ref_logp) ** 2 / 2


def k3(logp, ref_logp):
    """Returns pi_ref / pi - log(pi_ref / pi) - 1 (DeepSeekMath, arXiv:2402.03300, equation 4).

    >>> round(float(k3(np.log(0.5), np.log(1.0))), 4)
    0.3069
    """
    r = np.exp(np.asarray(ref_logp, np.float64) - np.asarray(logp, np.float64))
    return r - np.log(r) - 1


def absolute(logp, ref_logp):
    """Returns |log(pi / pi_ref)| (verl's abs).

    >>> float(absolute(-1.0, -0.5))
    0.5
    """
    return np.abs(k1(logp, ref_logp))


def clamped_k3(logp, ref_logp, *, log_ratio=20.0, value=10.0):
    """Returns k3 of one token with a bounded log-ratio, itself bounded (verl's low_var_kl).

    >>> clamped_k3(-3.0, 0.0), clamped_k3(0.0, -30.0)
    (10.0, 10.0)
    """
    difference = min(max(float(ref_logp) - float(logp), -log_ratio), log_ratio)
    return min(max(float(np.exp(difference)) - difference - 1, -value), value)


def ratio_weighted_k3(logp, ref_logp, old_logp):
    """Returns pi / pi_old times k3 (DeepSeek-V3.2, arXiv:2512.02556, section 3.1).

    >>> round(float(ratio_weighted_k3(np.log(0.5), np.log(1.0), np.log(0.25))), 4)
    0.6137
    """
    return np.exp(np.asarray(logp, np.float64)) / np.exp(np.asarray(old_logp, np.float64)) * k3(logp, ref_logp)


def sequence_weighted_k3(logp, ref_logp, old_logp, mask):
    """Returns each token's k3 times (pi(o) / pi_old(o))^(1/|o|), the ratio of its row `[B, T]` (TRL's GSPO with a KL).

    >>> sequence_weighted_k3([[np.log(0.5), 7]], [[0, 7]], [[np.log(0.25), 7]], [[True, False]]).round(4).tolist()
    [[0.6137, 0.0]]
    """
    weighted = np.zeros(np.shape(mask))
    for b, row in enumerate(mask):
        scored = [t for t, counts in enumerate(row) if counts]
        product = 1.0
        for t in scored:
            product *= float(np.exp(logp[b][t])) / float(np.exp(old_logp[b][t]))
        for t in scored:
            weighted[b, t] = product ** (1 / len(scored)) * k3(logp[b][t], ref_logp[b][t])
    return weighted

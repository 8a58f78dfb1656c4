"""Log-ratios of rows `[B, T]`."""

from __future__ import annotations

import math

import numpy as np


def per_sequence(log_ratio, mask):
    """Returns log pi(o|q) / pi_old(o|q) at each scored token (DeepSeek-R1, arXiv:2501.12948, equation 1).

    >>> per_sequence([[0.5, 0.25]], [[True, True]]).tolist()
    [[0.75, 0.75]]
    """
    out = np.zeros(np.shape(log_ratio))
    for b in range(len(out)):
        scored = np.flatnonzero(mask[b])
        for t in scored:
            out[b, t] = sum(float(log_ratio[b][u]) for u in scored)
    return out


def sequence_average(log_ratio, mask):
    """Returns log of (prod_u pi(o_u) / pi_old(o_u))^(1/|o|) at each scored token (GSPO, arXiv:2507.18071, equation 7).

    >>> sequence_average([[0.5, 0.25]], [[True, True]]).tolist()
    [[0.375, 0.375]]
    """
    out = np.zeros(np.shape(log_ratio))
    for b in range(len(out)):
        scored = np.flatnonzero(mask[b])
        for t in scored:
            out[b, t] = math.fsum(float(log_ratio[b][u]) for u in scored) / len(scored)
    return out

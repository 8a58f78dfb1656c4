"""Losses of pairs of completions: rows of tokens for the chosen and for the rejected one."""

from __future__ import annotations

import math


def pair_margin(logp, ref_logp, mask, *, per_token=False):
    """Returns the margin h of one pair [2, T] (DPO, arXiv:2305.18290, equation 7); None if a row has no scored token.

    >>> pair_margin([[-1.0, -1.0], [-2.0, 9.9]], [[-2.0, -2.0], [-1.0, 9.9]], [[True, True], [True, False]])
    3.0
    """
    scores = []
    for row in range(2):
        gaps = [float(p) - float(q) for p, q, m in zip(logp[row], ref_logp[row], mask[row], strict=True) if m]
        if not gaps:
            return None
        scores.append(math.fsum(gaps) / (len(gaps) if per_token else 1))
    return scores[0] - scores[1]


def dpo(h, *, beta, label_smoothing=0.0):
    """Returns the DPO loss at a margin (arXiv:2305.18290, equation 7), conservative if labels are smoothed.

    >>> round(dpo(0.0, beta=0.1), 6)
    0.693147
    """

    def minus_log_sigmoid(x):
        return math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x)) - x

    return (1 - label_smoothing) * minus_log_sigmoid(beta * h) + label_smoothing * minus_log_sigmoid(-beta * h)


def ipo(h, *, beta):
    """Returns the IPO loss at a margin (arXiv:2310.12036, equation 17).

    >>> ipo(3.0, beta=0.5)
    4.0
    """
    return (h - 1 / (2 * beta)) ** 2

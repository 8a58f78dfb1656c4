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

    >>> round(float(k3(math.log(0.5), math.log(1.0))), 4)
    0.3069
    """
    r = np.exp(np.asarray(ref_logp, np.float64) - np.asarray(logp, np.float64))
    return r - np.log(r) - 1

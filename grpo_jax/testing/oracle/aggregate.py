"""From the terms of tokens `[B, T]` to a sum and its weight."""

from __future__ import annotations

import numpy as np


def sequence_mean(x, mask):
    """Returns (sum of the means of the non-empty rows, their number).

    >>> sequence_mean([[1.0, 3.0], [4.0, 0.0]], [[True, True], [True, False]])
    (6.0, 2.0)
    """
    means = [float(np.mean([x[b][t] for t in np.flatnonzero(mask[b])])) for b in range(len(mask)) if np.any(mask[b])]
    return float(sum(means)), float(len(means))


def token_mean(x, mask):
    """Returns (sum over scored tokens, their number).

    >>> token_mean([[1.0, 3.0], [4.0, 0.0]], [[True, True], [True, False]])
    (8.0, 3.0)
    """
    scored = [float(x[b][t]) for b in range(len(mask)) for t in np.flatnonzero(mask[b])]
    return float(sum(scored)), float(len(scored))

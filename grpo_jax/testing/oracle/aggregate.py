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


def sequence_sum(x, mask):
    """Returns (sum over scored tokens, number of non-empty rows): verl's seq-mean-token-sum.

    >>> sequence_sum([[1.0, 3.0], [4.0, 0.0], [7.0, 7.0]], [[True, True], [True, False], [False, False]])
    (8.0, 2.0)
    """
    rows = [b for b in range(len(mask)) if any(mask[b])]
    return float(sum(x[b][t] for b in rows for t in np.flatnonzero(mask[b]))), float(len(rows))


def constant_length(x, mask, *, length):
    """Returns (sum over scored tokens, length times the non-empty rows) (Dr. GRPO, arXiv:2503.20783).

    >>> constant_length([[1.0, 3.0], [4.0, 0.0]], [[True, True], [True, False]], length=10)
    (8.0, 20.0)
    """
    total, rows = sequence_sum(x, mask)
    return total, rows * length


def every_row(name, x, mask, *, length=None):
    """Returns (total, weight) with every row counted, for `sequence_mean`, `sequence_sum` or `constant_length`.

    >>> every_row("sequence_mean", [[1.0, 3.0], [0.0, 0.0]], [[True, True], [False, False]])
    (2.0, 2.0)
    """
    total = {"sequence_mean": sequence_mean, "sequence_sum": sequence_sum, "constant_length": sequence_sum}[name](
        x, mask
    )[0]
    return total, float(len(mask)) * (length if name == "constant_length" else 1.0)

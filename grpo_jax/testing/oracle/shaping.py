"""Rewards for the length of one completion."""

from __future__ import annotations


def soft_overlong(length, *, limit, buffer):
    """Returns the length penalty of one completion (DAPO, arXiv:2503.14476, equation 13).

    >>> soft_overlong(16384, limit=20480, buffer=4096), soft_overlong(18432, limit=20480, buffer=4096)
    (0.0, -0.5)
    """
    if length <= limit - buffer:
        return 0.0
    if length <= limit:
        return ((limit - buffer) - length) / buffer
    return -1.0

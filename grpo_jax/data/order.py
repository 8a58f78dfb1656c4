"""The order of the data as a function of the seed and a position, so that a resumed run repeats and skips nothing."""

from __future__ import annotations

import numpy as np


def batch_indices(seed: int, cursor: int, *, size: int, count: int) -> np.ndarray:
    """Returns rows `cursor .. cursor + count - 1` of an endless walk through a dataset: int64 [count].

    The walk is one permutation of all rows per epoch, each drawn from (seed, epoch) alone. Within an epoch no row
    repeats, and any stretch of the walk is computed without the ones before it.

    >>> [sorted(batch_indices(0, epoch * 4, size=4, count=4).tolist()) for epoch in range(2)]
    [[0, 1, 2, 3], [0, 1, 2, 3]]

    Args:
      seed: fixes the walk.
      cursor: how many rows were taken before.
      size: rows in the dataset.
      count: rows to take; it may exceed `size` and cross epochs.

    Raises:
      ValueError: `size` is below 1, or another argument is negative.
    """
    if size < 1:
        raise ValueError(f"size={size}: the dataset has no rows to draw from")
    for name, number in (("seed", seed), ("cursor", cursor), ("count", count)):
        if number < 0:
            raise ValueError(f"{name}={number} is negative: give 0 or more")
    first, last = cursor // size, max(cursor + count - 1, cursor) // size
    walk = np.concatenate([_permutation(seed, epoch, size) for epoch in range(first, last + 1)])
    start = cursor - first * size
    return walk[start : start + count]


def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(size).astype(np.int64)

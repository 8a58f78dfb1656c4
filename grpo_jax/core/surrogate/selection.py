"""Choosing the tokens of a batch that a surrogate treats specially, with static shapes."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def portion(share: float, n: Int[Array, ""]) -> Int[Array, ""]:
    """Returns floor(share n).

    The product is rounded in floating point; one that is within a millionth below an integer counts as that integer.

    >>> portion(0.29, jnp.array(100)), portion(0.29, jnp.array(3))
    (Array(29, dtype=int32), Array(0, dtype=int32))
    """
    return jnp.floor(share * n * (1.0 + 1e-6)).astype(jnp.int32)


def largest(score: Float[Array, "*b"], eligible: Bool[Array, "*b"], count: Int[Array, ""]) -> Bool[Array, "*b"]:
    """Returns True on the `count` eligible entries with the largest scores, on all where fewer are eligible.

    All axes together are one pool. Of equal scores those that come first are taken, so that the count is exact; a
    score that is NaN comes last. Where nothing is eligible, nothing is chosen.

    >>> largest(jnp.array([[3.0, 1.0], [3.0, 9.0]]), jnp.array([[True, True], [True, False]]), jnp.array(1)).tolist()
    [[True, False], [False, False]]
    """
    pool = eligible.ravel()
    order = jnp.lexsort((-score.ravel(), ~pool))
    rank = jnp.zeros(pool.shape, jnp.int32).at[order].set(jnp.arange(pool.size, dtype=jnp.int32))
    return (pool & (rank < count)).reshape(eligible.shape)


def check_share(share: float) -> None:
    """Raises ValueError unless `share` is above 0 and at most 1.

    >>> check_share(0.0)
    Traceback (most recent call last):
    ValueError: share must be a number > 0 and <= 1, got 0.0
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share must be a number > 0 and <= 1, got {share}")

"""Reductions that see only what a boolean mask selects.

What lies outside a mask may hold anything, NaN and infinity included: it reaches neither a value nor a gradient.
That is why a mask selects (`where=`) and never multiplies: NaN * 0 is NaN.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

from grpo_jax.core.checks import require_mask


def as_float(x: Real[Array, "*b"]) -> Float[Array, "*b"]:
    """Returns `x` in float32, or unchanged when it is wider: mathematics is not done in bfloat16.

    >>> as_float(jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def sanitise(x: Real[Array, "*b T"], mask: Bool[Array, "*b T"]) -> Float[Array, "*b T"]:
    """Returns `x` in float32 or wider where `mask` is True, and 0 elsewhere.

    Gradient: the identity inside the mask, exactly 0 outside it. Do this before any `exp`: selecting afterwards
    keeps the value clean, but not the gradient.

    >>> sanitise(jnp.array([1.0, jnp.nan]), jnp.array([True, False]))
    Array([1., 0.], dtype=float32)
    """
    return jnp.where(mask, as_float(x), 0.0)


def masked_mean(x: Real[Array, "*b N"], mask: Bool[Array, "*b N"]) -> Float[Array, "*b"]:
    """Returns the mean of the selected entries of each row, 0 for a row without any.

        mean_b = sum_n m_bn x_bn / sum_n m_bn

    Gradient: 1/n on each selected entry, 0 elsewhere.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: the shapes differ.

    >>> masked_mean(jnp.array([[1.0, 3.0, jnp.nan], [jnp.inf] * 3]), jnp.array([[True, True, False], [False] * 3]))
    Array([2., 0.], dtype=float32)
    """
    require_mask("mask", mask, "x", x)
    total = jnp.sum(as_float(x), axis=-1, where=mask)
    return total / jnp.maximum(jnp.sum(mask, axis=-1), 1)


def masked_std(x: Real[Array, "*b N"], mask: Bool[Array, "*b N"], *, ddof: int) -> Float[Array, "*b"]:
    """Returns the standard deviation of the selected entries of each row, 0 where `ddof` or fewer are selected.

        std_b = sqrt( sum_n m_bn (x_bn - mean_b)^2 / (sum_n m_bn - ddof) )

    Gradient: that of the formula, and 0 (not NaN) where the deviation is 0.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: the shapes differ.

    >>> masked_std(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False]), ddof=1)
    Array(1.4142135, dtype=float32)
    """
    require_mask("mask", mask, "x", x)
    centred = sanitise(x - masked_mean(x, mask)[..., None], mask)
    freedom = jnp.sum(mask, axis=-1) - ddof
    variance = jnp.sum(centred**2, axis=-1) / jnp.maximum(freedom, 1)
    spread = (freedom > 0) & (variance > 0)
    return jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1.0)), 0.0)

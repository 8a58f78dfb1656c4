"""Aggregators: how the terms of tokens become one number, with the division left for the end."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.checks import require_mask
from grpo_jax.core.masking import as_float, masked_mean
from grpo_jax.types import WeightedSum


def sequence_mean(x: Float[Array, "*b T"], mask: Bool[Array, "*b T"]) -> WeightedSum:
    """Returns the mean over completions of the mean over their scored tokens.

        total = sum_b (1 / |o_b|) sum_t m_bt x_bt        weight = number of rows with a scored token

    Every completion counts the same, whatever its length; a row without a scored token does not count at all.

    Gradient: of the total, 1/|o_b| on each scored token of row b, 0 on padding; the weight has none.

    Args:
      x: a term of each token; padding may hold anything.
      mask: True on scored tokens.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: the shapes differ.

    Reference: DeepSeekMath, arXiv:2402.03300, equation 3.

    >>> x = jnp.array([[1.0, 3.0], [4.0, jnp.nan]])
    >>> sequence_mean(x, jnp.array([[True, True], [True, False]])).mean()
    Array(3., dtype=float32)
    """
    require_mask("mask", mask, "x", x)
    total = jnp.sum(masked_mean(x, mask))
    return WeightedSum(total, as_float(jnp.sum(jnp.any(mask, axis=-1))))


def token_mean(x: Float[Array, "*b T"], mask: Bool[Array, "*b T"]) -> WeightedSum:
    """Returns the mean over all scored tokens of all completions.

        total = sum_bt m_bt x_bt        weight = sum_bt m_bt

    Every token counts the same, so a long completion weighs more than a short one.

    Gradient: of the total, 1 on each scored token, 0 on padding; the weight has none.

    Args:
      x: a term of each token; padding may hold anything.
      mask: True on scored tokens.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: the shapes differ.

    Reference: DAPO, arXiv:2503.14476, equation 8.

    >>> x = jnp.array([[1.0, 3.0], [5.0, jnp.nan]])
    >>> token_mean(x, jnp.array([[True, True], [True, False]]))
    WeightedSum(total=Array(9., dtype=float32), weight=Array(3., dtype=float32))
    """
    require_mask("mask", mask, "x", x)
    return WeightedSum(jnp.sum(as_float(x), where=mask), as_float(jnp.sum(mask)))

"""Aggregators: how the terms of tokens become one number, with the division left for the end.

The slot's contract is `core.slots.Aggregate`. Whether a row without a scored token counts is written down in each
docstring.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.checks import require_mask
from grpo_jax.core.masking import as_float, masked_mean, sanitise
from grpo_jax.core.naming import PrintsByValue
from grpo_jax.core.slots import Aggregate
from grpo_jax.types import WeightedSum


def sequence_mean(x: Float[Array, "*b T"], mask: Bool[Array, "*b T"]) -> WeightedSum:
    """Returns the mean over completions of the mean over their scored tokens.

        total = sum_b (1 / |o_b|) sum_t m_bt x_bt        weight = number of rows with a scored token

    Every completion counts the same, whatever its length; a row without a scored token does not count at all.

    Gradient: of the total, 1/|o_b| on each scored token of row b, 0 on padding; the weight has none.

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

    Reference: DAPO, arXiv:2503.14476, equation 8.

    >>> x = jnp.array([[1.0, 3.0], [5.0, jnp.nan]])
    >>> token_mean(x, jnp.array([[True, True], [True, False]]))
    WeightedSum(total=Array(9., dtype=float32), weight=Array(3., dtype=float32))
    """
    require_mask("mask", mask, "x", x)
    return WeightedSum(jnp.sum(as_float(x), where=mask), as_float(jnp.sum(mask)))


def sequence_sum(x: Float[Array, "*b T"], mask: Bool[Array, "*b T"]) -> WeightedSum:
    """Returns the mean over completions of the sum over their scored tokens.

        total = sum_bt m_bt x_bt        weight = number of rows with a scored token

    The policy gradient as it is derived, without any normalisation by length. An empty row does not count.

    Gradient: of the total, 1 on each scored token, 0 on padding; the weight has none.

    Reference: the mode that verl calls seq-mean-token-sum.

    >>> x = jnp.array([[1.0, 3.0], [5.0, jnp.nan]])
    >>> sequence_sum(x, jnp.array([[True, True], [True, False]])).mean().tolist()
    4.5
    """
    require_mask("mask", mask, "x", x)
    return WeightedSum(jnp.sum(as_float(x), where=mask), as_float(jnp.sum(jnp.any(mask, axis=-1))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantLength:
    """The sum over scored tokens, divided by one constant length per completion (Dr. GRPO).

        total = sum_bt m_bt x_bt        weight = length * number of rows with a scored token

    Every token counts the same in every batch, whatever the lengths of its completion and of the others. An empty
    row does not count; inside `EveryRow` it does, as where the sum is divided by the whole shape of the batch.

    Gradient: of the total, 1 on each scored token, 0 on padding; the weight has none.

    Attributes:
      length: what stands for the length of a completion: usually the limit of tokens that are generated.

    Raises:
      ValueError: `length` is not a finite number above 0.

    Reference: Dr. GRPO, arXiv:2503.20783, section 3, and its masked sum over a constant number of tokens.

    >>> x = jnp.array([[1.0, 3.0], [5.0, jnp.nan]])
    >>> ConstantLength(length=10)(x, jnp.array([[True, True], [True, False]]))
    WeightedSum(total=Array(9., dtype=float32), weight=Array(20., dtype=float32))
    """

    length: float

    def __post_init__(self) -> None:
        if not 0.0 < self.length < float("inf"):
            raise ValueError(f"length must be a finite number > 0, got {self.length}")

    def __call__(self, x: Float[Array, "*b T"], mask: Bool[Array, "*b T"]) -> WeightedSum:
        """Returns the sum, and the constant length of all rows with a scored token."""
        added = sequence_sum(x, mask)
        return WeightedSum(added.total, added.weight * self.length)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class EveryRow(PrintsByValue):
    """An aggregator over rows in which empty rows count too: they add 0 to the total and their share to the weight.

        total, weight = those of `aggregate`, with one scored token that holds 0 in every empty row

    A completion that is left out altogether, because its reward failed or it was cut off, then makes the step smaller
    instead of giving its share to the others. A row that only fills up a batch counts as well: leave such rows away.

    Gradient: that of `aggregate` on scored tokens, 0 on padding and in empty rows.

    Attributes:
      aggregate: an aggregator whose unit is the row: not `token_mean`.

    Raises:
      ValueError: `aggregate` is `token_mean`, whose weight has no share of a row.

    Reference: the sequence mean and the constant length of TRL, which divide by all rows of the batch.

    >>> x, mask = jnp.array([[1.0, 3.0], [jnp.nan, jnp.nan]]), jnp.array([[True, True], [False, False]])
    >>> sequence_mean(x, mask).mean().tolist(), EveryRow(aggregate=sequence_mean)(x, mask).mean().tolist()
    (2.0, 1.0)
    """

    aggregate: Aggregate = sequence_mean

    def __post_init__(self) -> None:
        if self.aggregate is token_mean:
            raise ValueError("aggregate=token_mean counts tokens, not rows: an empty row has no share of its weight")

    def __call__(self, x: Float[Array, "*b T"], mask: Bool[Array, "*b T"]) -> WeightedSum:
        """Returns the total of `aggregate` and its weight with every row."""
        require_mask("mask", mask, "x", x)
        first = jnp.arange(x.shape[-1]) == 0
        empty = ~jnp.any(mask, axis=-1, keepdims=True)
        return self.aggregate(sanitise(x, mask), mask | (empty & first))

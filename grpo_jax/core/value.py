"""The critic: what it learns from, and how well it explains the returns.

The slot's contract is `core.slots.Value`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.aggregate import token_mean
from grpo_jax.core.checks import require_at_least, require_axes, require_mask, require_same_shape
from grpo_jax.core.masking import as_float, sanitise
from grpo_jax.core.objective import Objective
from grpo_jax.core.returns import all_equal
from grpo_jax.types import WeightedSum


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClippedValue:
    """The squared error of a critic that may not move far from what it said before.

        L = max( (V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2 ) / 2

    Gradient: V - R on `value` where the first is the larger; where the second is, the clip holds V constant and the
    gradient is exactly 0. `old_value` and `returns` are to be detached by the caller.

    Attributes:
      clip: how far from the old value, in the unit of the reward; None for a plain squared error.

    Raises:
      ValueError: `clip` is negative.

    References: PPO, arXiv:1707.06347, and its first implementation; factor and max as in arXiv:2005.12729, section 3.

    >>> loss, clipped = ClippedValue(clip=0.5)(jnp.array([1.0, 3.0]), jnp.zeros(2), jnp.array([0.0, 3.0]))
    >>> loss, clipped
    (Array([0.5  , 3.125], dtype=float32), Array([False,  True], dtype=bool))
    """

    clip: float | None = 0.2

    def __post_init__(self) -> None:
        if self.clip is not None:
            require_at_least("clip", self.clip, 0.0)

    def __call__(
        self, value: Float[Array, "*b T"], old_value: Float[Array, "*b T"], returns: Float[Array, "*b T"]
    ) -> tuple[Float[Array, "*b T"], Bool[Array, "*b T"]]:
        """Returns the loss of each token, and True where the clip holds it.

        Args:
          value: what the critic says now.
          old_value: what it said when the completions were sampled.
          returns: what it should have said, `gae`'s second result.

        Raises:
          ValueError: the shapes differ.
        """
        require_same_shape("old_value", old_value, "value", value)
        require_same_shape("returns", returns, "value", value)
        value, old_value, returns = as_float(value), as_float(old_value), as_float(returns)
        free = jnp.square(value - returns)
        if self.clip is None:
            return 0.5 * free, jnp.zeros(jnp.shape(value), bool)
        held = jnp.square(jnp.clip(value, old_value - self.clip, old_value + self.clip) - returns)
        clipped = held > free
        return 0.5 * jnp.where(clipped, held, free), clipped


def value_loss(
    objective: Objective,
    *,
    value: Float[Array, "*b T"],
    old_value: Float[Array, "*b T"],
    returns: Float[Array, "*b T"],
    mask: Bool[Array, "*b T"],
) -> tuple[WeightedSum, dict[str, WeightedSum]]:
    """Returns the critic's loss of a batch of completions, not yet divided, and its metrics.

        loss = aggregate( objective.value(V, V_old, R) )

    Gradient: flows through `value` alone. The rest, and every metric, is detached here and nowhere else.

    Args:
      objective: the terms; `value` and `aggregate` are used.
      value: what the critic says now. Wherever `mask` is False, all three arrays may hold anything.
      old_value: what it said when the completions were sampled.
      returns: what it should have said: the second result of `gae`.
      mask: True on scored tokens.

    Returns:
      The loss, and metrics: `value_loss` is the same without a gradient; means over tokens are `value_clip_fraction`
      and `value`.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: shapes differ, or the objective has no loss for a critic.

    >>> from grpo_jax.core.presets import ppo
    >>> tokens = dict(value=jnp.array([[1.0, 3.0]]), returns=jnp.array([[0.0, jnp.nan]]), old_value=jnp.ones((1, 2)))
    >>> value_loss(ppo(), mask=jnp.array([[True, False]]), **tokens)[0].mean()
    Array(0.5, dtype=float32)
    """
    require_axes("value", value, "T")
    require_mask("mask", mask, "value", value)
    for name, x in (("old_value", old_value), ("returns", returns)):
        require_same_shape(name, x, "value", value)
    if objective.value is None:
        raise ValueError("value=None: this objective has no loss for a critic; set value=ClippedValue()")
    constant = jax.lax.stop_gradient
    value = sanitise(value, mask)
    loss, clipped = objective.value(value, constant(sanitise(old_value, mask)), constant(sanitise(returns, mask)))
    total = objective.aggregate(loss, mask)
    metrics = {"value_loss": total, "value_clip_fraction": token_mean(clipped, mask), "value": token_mean(value, mask)}
    return total, constant(metrics)


def explained_variance(
    value: Float[Array, "*b T"], returns: Float[Array, "*b T"], mask: Bool[Array, "*b T"]
) -> Float[Array, ""]:
    """Returns the share of the returns' variance that the critic explains, over all scored tokens.

        1 - Var(R - V) / Var(R)

    1 is a perfect critic, 0 one that says a constant, and below 0 is worse than that. Returns without variance give
    0: there is nothing to explain.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: the shapes differ.

    >>> explained_variance(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False]))
    Array(0.75, dtype=float32)
    """
    require_mask("mask", mask, "value", value)
    require_same_shape("returns", returns, "value", value)
    returns = sanitise(returns, mask)
    total = _variance(returns, mask)
    rest = _variance(returns - sanitise(value, mask), mask)
    constant = all_equal(returns, mask) | (total == 0)
    return jnp.where(constant, 0.0, 1.0 - rest / jnp.where(constant, 1.0, total))


def _variance(x: Float[Array, "*b T"], mask: Bool[Array, "*b T"]) -> Float[Array, ""]:
    count = jnp.maximum(jnp.sum(mask), 1)
    centred = sanitise(x - jnp.sum(x, where=mask) / count, mask)
    return jnp.sum(centred**2) / count

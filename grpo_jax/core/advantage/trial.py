"""What an advantage may ask for, and whether it can be computed at all: asked before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.core.naming import show
from grpo_jax.core.slots import asks

READS: dict[str, tuple[str, Any]] = {
    "mask": ("P G T", jnp.bool_),
    "token_reward": ("P G T", jnp.float32),
    "value": ("P G T", jnp.float32),
    "greedy_reward": ("P", jnp.float32),
    "term_reward": ("P G K", jnp.float32),
    "term_weight": ("K", jnp.float32),
    "step_reward": ("P G K", jnp.float32),
    "step_end": ("P G K", jnp.int32),
    "step_valid": ("P G K", jnp.bool_),
}
"""The names that an advantage may declare as keyword-only parameters, with the axes and the type of each."""


def check_advantage(advantage: Callable[..., Any], group: int) -> None:
    """Raises unless an advantage can be computed from groups of a size; nothing is computed.

    Raises:
      TypeError: the advantage refuses the types that it asks for.
      ValueError: it asks for something that does not exist, refuses a group of that size, or returns another shape
        than [P, G] or [P, G, T].

    >>> def strange(reward, valid, *, length): ...
    >>> check_advantage(strange, 4)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: strange asks for length; an advantage may ask for mask, token_reward, value, ...
    """
    unknown = [name for name in asks(advantage) if name not in READS]
    if unknown:
        raise ValueError(
            f"{show(advantage)} asks for {', '.join(unknown)}; an advantage may ask for {', '.join(READS)}"
        )
    sizes = {"P": 2, "G": group, "T": 3, "K": 2}

    def shaped(axes: str, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(sizes[axis] for axis in axes.split()), dtype)  # type: ignore[no-untyped-call]

    asked = {name: shaped(*READS[name]) for name in asks(advantage)}
    each = shaped("P G", jnp.float32), shaped("P G", jnp.bool_)
    result = jax.eval_shape(lambda reward, valid, asked: advantage(reward, valid, **asked), *each, asked)
    if getattr(result, "shape", None) not in ((2, group), (2, group, 3)):
        raise ValueError(f"{show(advantage)} returns {result}; expected the shape [P, G] or [P, G, T]")

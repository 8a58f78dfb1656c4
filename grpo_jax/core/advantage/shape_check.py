"""Whether an advantage can be computed at all, asked of its shapes and types before anything is compiled."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.core.naming import show
from grpo_jax.core.slots import OFFERS, Advantage, asks, require_offered

_SIZES = {"...": 2, "T": 3, "K": 2}
"""A batch of two prompts, to try an advantage on; G is the group's."""


def check_advantage(advantage: Advantage, group: int) -> None:
    """Raises unless an advantage can be computed from groups of a size; nothing is computed.

    Raises:
      TypeError: the advantage refuses the types that it asks for.
      ValueError: it asks for something that does not exist, refuses a group of that size, or returns another shape
        than [P, G] or [P, G, T].

    >>> def strange(reward, valid): return reward[..., 0]
    >>> check_advantage(strange, 4)
    Traceback (most recent call last):
    ValueError: strange returns ShapeDtypeStruct(shape=(2,), dtype=float32); expected the shape [P, G] or [P, G, T]
    """
    require_offered("advantage", advantage)
    sizes = {**_SIZES, "G": group}

    def shaped(axes: str, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(sizes[axis] for axis in axes.split()), dtype)  # type: ignore[no-untyped-call]

    offered = [(name, *OFFERS["advantage"][name]) for name in asks(advantage)]
    asked = {name: shaped(axes, jnp.dtype(dtype)) for name, dtype, axes, _ in offered}
    each = shaped("... G", jnp.float32), shaped("... G", jnp.bool_)
    result = jax.eval_shape(lambda reward, valid, asked: advantage(reward, valid, **asked), *each, asked)
    if getattr(result, "shape", None) not in ((2, group), (2, group, 3)):
        raise ValueError(f"{show(advantage)} returns {result}; expected the shape [P, G] or [P, G, T]")

"""A parameter with the names of its axes."""

from __future__ import annotations

import jax
from flax import nnx


def weight(key: jax.Array, shape: tuple[int, ...], axes: tuple[str | None, ...], *, fan_in: int) -> nnx.Param:
    """Returns a float32 parameter drawn from N(0, 1/fan_in), with its logical axes as metadata."""
    return nnx.Param(jax.random.normal(key, shape) * fan_in**-0.5, axes=axes)

"""Parameters with the names of their axes, and with their kind: a matrix, a bias, or the scale of a norm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


def weight(key: jax.Array, shape: tuple[int, ...], axes: tuple[str | None, ...], *, fan_in: int) -> nnx.Param:
    """Returns a float32 matrix drawn from N(0, 1/fan_in), with its logical axes as metadata."""
    return nnx.Param(jax.random.normal(key, shape) * fan_in**-0.5, axes=axes, kind="matrix")


def bias(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
    """Returns a float32 bias of zeros."""
    return nnx.Param(jnp.zeros(shape), axes=axes, kind="bias")

"""Rotary positions: their frequencies, and the rotation itself.

Frequencies are constants of a configuration and are computed in float64 on the host: a float32 power of an
accelerator is off by more than the rounding of its result, and positions multiply that error.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grpo_jax.models.rope_scaling import Scaling, Yarn

Rope = tuple[jax.Array, jax.Array]
"""Cosines and sines `[#P, #G, Q, C / 2]` of the angles by which rotary positions rotate queries and keys."""


def frequencies(*, width: int, theta: float, scaling: Scaling | None = None) -> np.ndarray:
    """Returns the float64 angles per position of the C/2 pairs of features: `theta ** (-2i / width)`, scaled.

    >>> frequencies(width=4, theta=100.0).tolist()
    [1.0, 0.1]
    >>> from grpo_jax.models.rope_scaling import Linear
    >>> frequencies(width=4, theta=100.0, scaling=Linear(factor=4.0)).tolist()
    [0.25, 0.025]
    """
    half = width // 2
    frequency = float(theta) ** (-np.arange(half) / half)
    return frequency if scaling is None else scaling(frequency, theta)


def rope(
    position: Int[Array, "P G Q"], *, width: int, theta: float, scaling: Scaling | None = None
) -> tuple[Float[Array, "P G Q C/2"], Float[Array, "P G Q C/2"]]:
    """Returns cosine and sine of `position * frequency`; computed once, used by every layer of its kind."""
    frequency = jnp.asarray(frequencies(width=width, theta=theta, scaling=scaling), jnp.float32)
    angle = position.astype(jnp.float32)[..., None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if isinstance(scaling, Yarn):
        cos, sin = cos * scaling.attention_factor, sin * scaling.attention_factor
    return cos, sin


def rotate(x: Float[Array, "P G Q *heads C"], angles: Rope) -> Float[Array, "P G Q *heads C"]:
    """Returns `x` with rotary positions: features i and i + C/2 are rotated together.

    Reference: RoFormer, arXiv:2104.09864 (the half-split layout that Llama and Qwen weights use).
    """
    half = x.shape[-1] // 2
    cos, sin = (jnp.expand_dims(part, tuple(range(3, x.ndim - 1))) for part in angles)
    low, high = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1).astype(x.dtype)

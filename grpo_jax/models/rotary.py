"""Rotary positions: their frequencies, the scalings that stretch them to longer texts, and the rotation itself.

Frequencies are constants of a configuration and are computed in float64 on the host: a float32 power of an
accelerator is off by more than the rounding of its result, and positions multiply that error.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Rotation = tuple[jax.Array, jax.Array]
"""Cosines and sines `[P, 1, Q, C / 2]` of the angles that a layer's queries and keys turn by."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
    """Every frequency divided by `factor`: positions are interpolated (arXiv:2306.15595)."""

    factor: float

    def __call__(self, frequency: np.ndarray, theta: float) -> np.ndarray:
        """Returns the scaled frequencies."""
        return frequency / self.factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3:
    """Long waves are divided by `factor`, short ones stay, those between are blended (arXiv:2407.21783).

    Attributes:
      factor: what slow frequencies are divided by.
      low: a wave that turns fewer times than this within `original` positions is long.
      high: a wave that turns more often than this is short.
      original: positions that the model was first trained on.
    """

    factor: float
    low: float
    high: float
    original: int

    def __call__(self, frequency: np.ndarray, theta: float) -> np.ndarray:
        """Returns the scaled frequencies."""
        turns = self.original * frequency / (2 * math.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return frequency * (kept + (1 - kept) / self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yarn:
    """Slow features are interpolated, fast ones stay, and all queries and keys are lengthened (arXiv:2309.00071).

    Attributes:
      factor: what slow frequencies are divided by.
      original: positions that the model was first trained on.
      magnitude: what cosines and sines are multiplied by; the paper's is `0.1 ln(factor) + 1`.
      fast: a feature that turns this often within `original` positions, or more often, stays.
      slow: one that turns this often or less is divided.
      whole: the ramp between the two begins and ends at whole features.
    """

    factor: float
    original: int
    magnitude: float
    fast: float = 32.0
    slow: float = 1.0
    whole: bool = True

    def __call__(self, frequency: np.ndarray, theta: float) -> np.ndarray:
        """Returns the scaled frequencies."""
        half = len(frequency)
        first, last = (
            half * math.log(self.original / (2 * math.pi * turns)) / math.log(theta) for turns in (self.fast, self.slow)
        )
        if self.whole:
            first, last = math.floor(first), math.ceil(last)
        # The end is bounded by the head's width, not by the number of its frequencies, as in the authors' own code.
        first, last = max(first, 0), min(last, 2 * half - 1)
        width = last - first if last != first else 1e-3
        divided = np.clip((np.arange(half) - first) / width, 0, 1)
        return frequency * (1 - divided + divided / self.factor)


Scaling = Linear | Llama3 | Yarn


def frequencies(*, width: int, theta: float, scaling: Scaling | None = None) -> np.ndarray:
    """Returns the float64 angles per position of the C/2 pairs of features: `theta ** (-2i / width)`, scaled.

    >>> frequencies(width=4, theta=100.0).tolist()
    [1.0, 0.1]
    >>> frequencies(width=4, theta=100.0, scaling=Linear(factor=4.0)).tolist()
    [0.25, 0.025]
    """
    half = width // 2
    frequency = float(theta) ** (-np.arange(half) / half)
    return frequency if scaling is None else scaling(frequency, theta)


def rotation(
    position: Int[Array, "P Q"], *, width: int, theta: float, scaling: Scaling | None = None
) -> tuple[Float[Array, "P 1 Q C/2"], Float[Array, "P 1 Q C/2"]]:
    """Returns cosine and sine of `position * frequency`; computed once, used by every layer of its kind."""
    frequency = jnp.asarray(frequencies(width=width, theta=theta, scaling=scaling), jnp.float32)
    angle = position.astype(jnp.float32)[:, None, :, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if isinstance(scaling, Yarn):
        cos, sin = cos * scaling.magnitude, sin * scaling.magnitude
    return cos, sin


def rotate(x: Float[Array, "P G Q *heads C"], turn: Rotation) -> Float[Array, "P G Q *heads C"]:
    """Returns `x` with rotary positions: features i and i + C/2 are turned together.

    Reference: RoFormer, arXiv:2104.09864 (the half-split layout that Llama and Qwen weights use).
    """
    half = x.shape[-1] // 2
    cos, sin = (jnp.expand_dims(part, tuple(range(3, x.ndim - 1))) for part in turn)
    low, high = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1).astype(x.dtype)

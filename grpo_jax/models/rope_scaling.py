"""Scalings of rotary frequencies, which stretch a model to longer texts. Nothing here imports JAX."""

from __future__ import annotations

import dataclasses
import math

import numpy as np


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
      low_freq_factor: a wave that turns fewer times than this within `original` positions is long.
      high_freq_factor: a wave that turns more often than this is short.
      original: positions that the model was first trained on.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original: int

    def __call__(self, frequency: np.ndarray, theta: float) -> np.ndarray:
        """Returns the scaled frequencies."""
        turns = self.original * frequency / (2 * math.pi)
        kept = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return frequency * (kept + (1 - kept) / self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yarn:
    """Slow features are interpolated, fast ones stay, and all queries and keys are lengthened (arXiv:2309.00071).

    Attributes:
      factor: what slow frequencies are divided by.
      original: positions that the model was first trained on.
      attention_factor: what cosines and sines are multiplied by; the paper's is `0.1 ln(factor) + 1`.
      beta_fast: a feature that turns this often within `original` positions, or more often, stays.
      beta_slow: one that turns this often or less is divided.
      truncate: the ramp between the two begins and ends at whole features.
    """

    factor: float
    original: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __call__(self, frequency: np.ndarray, theta: float) -> np.ndarray:
        """Returns the scaled frequencies."""
        half = len(frequency)
        first, last = (
            half * math.log(self.original / (2 * math.pi * turns)) / math.log(theta)
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        # The end is bounded by the head's width, not by the number of its frequencies, as in the authors' own code.
        first, last = max(first, 0), min(last, 2 * half - 1)
        width = last - first if last != first else 1e-3
        divided = np.clip((np.arange(half) - first) / width, 0, 1)
        return frequency * (1 - divided + divided / self.factor)


Scaling = Linear | Llama3 | Yarn

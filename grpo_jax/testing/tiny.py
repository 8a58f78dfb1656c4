"""Tiny models and batches for tests: every feature of the real ones, in a few thousand parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.models import DecoderConfig
from grpo_jax.types import PromptBatch


def tiny_config(**changes: Any) -> DecoderConfig:
    """Returns the configuration of a decoder of two layers, with grouped queries."""
    shape = {"vocab": 23, "hidden": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_width": 4, "mlp": 24}
    return DecoderConfig(**{**shape, **changes})


def tiny_prompts(lengths: tuple[int, ...] = (5, 1, 3, 6), *, vocab: int = 23, seed: int = 0) -> PromptBatch:
    """Returns random prompts of these lengths, right-padded to the longest."""
    longest = max(lengths)
    tokens = jax.random.randint(jax.random.key(seed), (len(lengths), longest), 3, vocab)
    mask = jnp.arange(longest) < jnp.array(lengths)[:, None]
    return PromptBatch(tokens=jnp.where(mask, tokens, 0), mask=mask)

"""Mistral: Llama with a window on every layer, where there is one."""

from __future__ import annotations

from typing import Any

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.families.family import Family
from grpo_jax.models.families.fields import Fields, shape_fields
from grpo_jax.models.families.rope import read_rope, write_rope


def read(raw: dict[str, Any]) -> DecoderConfig:
    """Returns the configuration that config.json describes."""
    f = Fields(raw, "mistral")
    f.fixed("hidden_act", "silu")
    f.fixed("attention_bias", False)
    shape, window = f.shape(tied=False), f.optional_positive("sliding_window", 4096)
    windows = f.windows(window, [window is not None] * shape["layers"])
    config = DecoderConfig(**shape, **windows, **read_rope(f))
    f.close()
    return config


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the fields that `read` reads."""
    fields = {"hidden_act": "silu", "sliding_window": config.window if all(config.local) else None}
    return {**fields, **shape_fields(config), **write_rope(config)}


FAMILY = Family(name="mistral", architecture="MistralForCausalLM", read=read, fields=write)

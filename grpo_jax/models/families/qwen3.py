"""Qwen3: norms on queries and keys instead of biases."""

from __future__ import annotations

from typing import Any

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.families.family import Family
from grpo_jax.models.families.fields import Fields, shape_fields
from grpo_jax.models.families.qwen2 import upper_window_fields, upper_windows
from grpo_jax.models.families.rope import read_rope, write_rope


def read(raw: dict[str, Any]) -> DecoderConfig:
    """Returns the configuration that config.json describes."""
    f = Fields(raw, "qwen3")
    f.fixed("hidden_act", "silu")
    shape = f.shape(tied=False, head_width=128)
    windows = upper_windows(f, shape["layers"])
    config = DecoderConfig(**shape, qk_norm=True, **f.biases(), **windows, **read_rope(f))
    f.close()
    return config


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the fields that `read` reads."""
    return {
        "hidden_act": "silu",
        "attention_bias": config.out_bias,
        **shape_fields(config),
        **upper_window_fields(config),
        **write_rope(config),
    }


FAMILY = Family(name="qwen3", architecture="Qwen3ForCausalLM", read=read, fields=write)

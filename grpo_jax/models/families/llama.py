"""Llama 2, 3 and 3.x, and the many models that are built like them."""

from __future__ import annotations

from typing import Any

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.families.family import Family
from grpo_jax.models.families.fields import Fields, shape_fields
from grpo_jax.models.families.rope import read_rope, write_rope


def read(raw: dict[str, Any]) -> DecoderConfig:
    """Returns the configuration that config.json describes."""
    # Before grouped queries the field did not exist: every query head had a key of its own.
    f = Fields({"num_key_value_heads": None, **raw}, "llama")
    f.fixed("hidden_act", "silu")
    f.fixed("mlp_bias", False)
    config = DecoderConfig(**f.shape(tied=False), **f.biases(), **read_rope(f))
    f.close()
    return config


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the fields that `read` reads."""
    fields = {"hidden_act": "silu", "mlp_bias": False, "attention_bias": config.out_bias}
    return {**fields, **shape_fields(config), **write_rope(config)}


FAMILY = Family(name="llama", architecture="LlamaForCausalLM", read=read, fields=write)

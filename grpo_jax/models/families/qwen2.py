"""Qwen2 and Qwen2.5: biases on queries, keys and values; upper layers may be local."""

from __future__ import annotations

from typing import Any

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.families.family import Family
from grpo_jax.models.families.fields import Fields, layer_types, shape_fields
from grpo_jax.models.families.rope import read_rope, write_rope


def read(raw: dict[str, Any]) -> DecoderConfig:
    """Returns the configuration that config.json describes."""
    f = Fields(raw, "qwen2")
    f.fixed("hidden_act", "silu")
    shape = f.shape(tied=False)
    config = DecoderConfig(**shape, qkv_bias=True, **upper_windows(f, shape["layers"]), **read_rope(f))
    f.close()
    return config


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the fields that `read` reads."""
    return {"hidden_act": "silu", **shape_fields(config), **upper_window_fields(config), **write_rope(config)}


def upper_windows(f: Fields, layers: int) -> dict[str, Any]:
    """Returns the local layers: where `use_sliding_window` is set, those from `max_window_layers` on."""
    used, window = f.flag("use_sliding_window", False), f.optional_positive("sliding_window", 4096)
    first = f.integer("max_window_layers", 28, least=0)
    window = window if used else None
    return f.windows(window, [window is not None and i >= first for i in range(layers)])


def upper_window_fields(config: DecoderConfig) -> dict[str, Any]:
    """Returns the fields that `upper_windows` reads."""
    local = [config.is_local(i) for i in range(config.layers)]
    return {
        "use_sliding_window": any(local),
        "sliding_window": config.window,
        "max_window_layers": local.index(True) if any(local) else config.layers,
        "layer_types": layer_types(config),
    }


FAMILY = Family(name="qwen2", architecture="Qwen2ForCausalLM", read=read, fields=write)

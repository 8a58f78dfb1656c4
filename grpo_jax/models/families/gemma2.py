"""Gemma 2: soft caps on scores and logits, every other layer local, zero-centred norms before and after."""

from __future__ import annotations

from typing import Any

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.families.family import Family
from grpo_jax.models.families.fields import Fields, layer_types, shape_fields
from grpo_jax.models.families.rope import read_rope, write_rope

ALWAYS = {"zero_centred": True, "post_norms": True, "scaled_embed": True, "activation": "gelu_tanh"}
"""What all of Gemma shares."""


def read(raw: dict[str, Any]) -> DecoderConfig:
    """Returns the configuration that config.json describes."""
    f = Fields(raw, "gemma2")
    gemma_fields(f)
    shape, window = f.shape(tied=True, head_width=256), f.optional_positive("sliding_window", 4096)
    f.fixed("sliding_window_size", window, None)  # the same once more, in the larger models
    windows = f.windows(window, [i % 2 == 0 for i in range(shape["layers"])])
    config = DecoderConfig(
        **{**shape, **ALWAYS, **f.biases(), **windows, **read_rope(f)},
        query_scalar=f.number("query_pre_attn_scalar", 256),
        attention_cap=f.optional_number("attn_logit_softcapping", 50.0),
        final_cap=f.optional_number("final_logit_softcapping", 30.0),
    )
    f.close()
    return config


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the fields that `read` reads."""
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_act": "gelu_pytorch_tanh",
        "attention_bias": config.out_bias,
        "query_pre_attn_scalar": _as_integer(config.query_scalar),
        "attn_logit_softcapping": config.attention_cap,
        "final_logit_softcapping": config.final_cap,
        "sliding_window": config.window,
        "layer_types": layer_types(config),
        **shape_fields(config),
        **write_rope(config),
    }


def gemma_fields(f: Fields) -> None:
    """Reads the fields that are the same in all of Gemma."""
    f.fixed("hidden_activation", "gelu_pytorch_tanh")
    f.get("hidden_act")  # stands beside hidden_activation, which alone is used
    f.fixed("use_bidirectional_attention", None, False)


def _as_integer(value: float | None) -> int | float | None:
    """Returns an integer where it is one: readers of this field accept nothing else."""
    return int(value) if value is not None and value == int(value) else value


FAMILY = Family(name="gemma2", architecture="Gemma2ForCausalLM", read=read, fields=write)

"""Qwen3's mixture of experts: Qwen3 with a router in every layer."""

from __future__ import annotations

from typing import Any

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.families.family import Family
from grpo_jax.models.families.fields import Fields, shape_fields
from grpo_jax.models.families.rope import read_rope, write_rope


def read(raw: dict[str, Any]) -> DecoderConfig:
    """Returns the configuration that config.json describes."""
    f = Fields(raw, "qwen3_moe")
    f.fixed("hidden_act", "silu")
    # Layers are stacked, so all of them are routed.
    f.fixed("decoder_sparse_step", 1)
    f.fixed("mlp_only_layers", [], None)
    f.fixed("shared_expert_intermediate_size", 0, None)
    f.fixed("qkv_bias", False)
    f.fixed("use_qk_norm", True)
    f.get("intermediate_size")  # the width of layers without a router, of which there are none
    f.get("max_window_layers")  # without effect here: a window is on all layers or on none
    shape = f.shape(tied=False, mlp="moe_intermediate_size")
    used, window = f.flag("use_sliding_window", False), f.optional_positive("sliding_window", 4096)
    window = window if used else None
    windows = f.windows(window, [window is not None] * shape["layers"])
    config = DecoderConfig(
        **{**shape, **f.biases(), **windows, **read_rope(f)},
        qk_norm=True,
        experts=_experts(f),
        experts_per_token=f.positive("num_experts_per_tok"),
        normalised_routing=f.flag("norm_topk_prob", False),
    )
    f.close()
    return config


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the fields that `read` reads."""
    return {
        "hidden_act": "silu",
        "attention_bias": config.out_bias,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": config.mlp,
        "num_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "norm_topk_prob": config.normalised_routing,
        "use_sliding_window": any(config.local),
        "sliding_window": config.window if all(config.local) else None,
        **shape_fields(config),
        **write_rope(config),
    }


def _experts(f: Fields) -> int:
    """Returns the number of experts, which has had two names."""
    other = f.get("num_local_experts")
    return f.positive("num_experts", other if isinstance(other, int) else None)


FAMILY = Family(name="qwen3_moe", architecture="Qwen3MoeForCausalLM", read=read, fields=write)

"""The tensors' names in a checkpoint. All families share them, so they follow from the configuration alone."""

from __future__ import annotations

from grpo_jax.models.config import DecoderConfig

LAYER = "model.layers.{layer}."


def tensor_names(config: DecoderConfig) -> dict[str, str]:
    """Returns dotted path of a leaf -> name of its tensor, with `{layer}` (and `{expert}`) for the stacked axes."""
    names = {"embed": "model.embed_tokens.weight", "norm.scale": "model.norm.weight"}
    if not config.tied:
        names["head"] = "lm_head.weight"
    parts = {**_attention(config), **_norms(config), **_mlp(config)}
    return names | {f"layers.{path}": LAYER + name for path, name in parts.items()}


def _attention(config: DecoderConfig) -> dict[str, str]:
    names = {f"attention.{x}": f"self_attn.{x}_proj.weight" for x in "qkv"}
    names["out"] = "self_attn.o_proj.weight"
    if config.qkv_bias:
        names |= {f"attention.{x}_bias": f"self_attn.{x}_proj.bias" for x in "qkv"}
    if config.out_bias:
        names["out_bias"] = "self_attn.o_proj.bias"
    if config.qk_norm:
        names |= {f"{x}_norm.scale": f"self_attn.{x}_norm.weight" for x in "qk"}
    return names


def _norms(config: DecoderConfig) -> dict[str, str]:
    # With two norms the second stands before the MLP, yet is named after where it follows; with four, after what it is.
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if config.post_norms:
        norms["post_attention_norm"] = "post_attention_layernorm"
        norms |= {"mlp_norm": "pre_feedforward_layernorm", "post_mlp_norm": "post_feedforward_layernorm"}
    return {f"{ours}.scale": f"{theirs}.weight" for ours, theirs in norms.items()}


def _mlp(config: DecoderConfig) -> dict[str, str]:
    at = "mlp.experts.{expert}." if config.experts else "mlp."
    router = {"mlp.router": "mlp.gate.weight"} if config.experts else {}
    inner = {f"mlp.{x}": f"{at}{x}_proj.weight" for x in ("gate", "up")}
    return router | inner | {"down": f"{at}down_proj.weight"}

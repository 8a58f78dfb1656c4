"""A tiny checkpoint in the layout of Hugging Face's Qwen2, written with NumPy and safetensors alone."""

import dataclasses
import json

import ml_dtypes  # noqa: F401
import numpy as np
from safetensors.numpy import save_file

from grpo_jax.models import DecoderConfig

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
}


def decoder_config(**changes):
    """The same model as a `DecoderConfig`."""
    shape = {"vocab": 32, "hidden": 16, "layers": 3, "heads": 4, "kv_heads": 2, "head_width": 4, "mlp": 24}
    return DecoderConfig(**{**shape, "tied": False, "qkv_bias": True, **changes})


NAMES = {
    "embed": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "head": "lm_head.weight",
    "layers.attention_norm.scale": "model.layers.{layer}.input_layernorm.weight",
    "layers.attention.q": "model.layers.{layer}.self_attn.q_proj.weight",
    "layers.attention.k": "model.layers.{layer}.self_attn.k_proj.weight",
    "layers.attention.v": "model.layers.{layer}.self_attn.v_proj.weight",
    "layers.attention.q_bias": "model.layers.{layer}.self_attn.q_proj.bias",
    "layers.attention.k_bias": "model.layers.{layer}.self_attn.k_proj.bias",
    "layers.attention.v_bias": "model.layers.{layer}.self_attn.v_proj.bias",
    "layers.out": "model.layers.{layer}.self_attn.o_proj.weight",
    "layers.mlp_norm.scale": "model.layers.{layer}.post_attention_layernorm.weight",
    "layers.mlp.gate": "model.layers.{layer}.mlp.gate_proj.weight",
    "layers.mlp.up": "model.layers.{layer}.mlp.up_proj.weight",
    "layers.down": "model.layers.{layer}.mlp.down_proj.weight",
}


def names(config):
    """The tensors of a model, without the head of a tied one."""
    return {path: name for path, name in NAMES.items() if not (config.tied and path == "head")}


@dataclasses.dataclass(frozen=True)
class Family:
    """Qwen2, as far as these tests need it."""

    name: str = "qwen2"
    architecture: str = "Qwen2ForCausalLM"

    def read(self, raw):
        return decoder_config(
            vocab=raw["vocab_size"], layers=raw["num_hidden_layers"], tied=raw["tie_word_embeddings"], qkv_bias=True
        )

    def write(self, config):
        return {
            **CONFIG,
            "vocab_size": config.vocab,
            "num_hidden_layers": config.layers,
            "tie_word_embeddings": config.tied,
            "rope_theta": config.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        }

    def names(self, config):
        return names(config)


FAMILY = Family()


def shapes(raw):
    """The shape of every tensor, spelled out: linear layers are [out, in]."""
    D, M, V, H, K = (
        raw[name]
        for name in ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads")
    )
    C = D // H
    result = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not raw["tie_word_embeddings"]:
        result["lm_head.weight"] = (V, D)
    for i in range(raw["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": (D,),
            "self_attn.q_proj.weight": (H * C, D),
            "self_attn.q_proj.bias": (H * C,),
            "self_attn.k_proj.weight": (K * C, D),
            "self_attn.k_proj.bias": (K * C,),
            "self_attn.v_proj.weight": (K * C, D),
            "self_attn.v_proj.bias": (K * C,),
            "self_attn.o_proj.weight": (D, H * C),
            "post_attention_layernorm.weight": (D,),
            "mlp.gate_proj.weight": (M, D),
            "mlp.up_proj.weight": (M, D),
            "mlp.down_proj.weight": (D, M),
        }
        result |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return result


def random_tensors(raw, dtype="float32", seed=0):
    """Tensors drawn from a normal distribution, rounded to `dtype`."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32).astype(dtype) for name, shape in shapes(raw).items()}


def write_checkpoint(directory, raw=CONFIG, tensors=None, *, shards=1, dtype="float32"):
    """Writes config.json and the tensors, in `shards` files with an index (one file has none); returns the tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(raw, dtype) if tensors is None else tensors
    (directory / "config.json").write_text(json.dumps(raw))
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return tensors
    weight_map = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(weight_map.values())):
        held = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        save_file(held, directory / file, metadata={"format": "pt"})
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors

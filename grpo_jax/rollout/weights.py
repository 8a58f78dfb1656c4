"""Training weights turned into rollout weights: one tree, two layouts."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grpo_jax.models.adapters import merge_adapters
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Params, cast_params


def publish(config: DecoderConfig, params: Params) -> Params:
    """Returns the weights for decoding: per layer, in the dtype in which they are used, with fused projections.

    `layers` becomes a tuple of dicts; query, key and value become one matrix `[D, K, R + 2, C]`, gate and up one
    `[D, 2, M]` (of every expert `[E, D, 2, M]`; a router stays as it is). Adapters are added to their weights before
    these are cast. Runs once per rollout, under `jit`.
    """
    cast = cast_params(config, merge_adapters(params))
    stacked = cast["layers"]
    attention, mlp = stacked["attention"], stacked["mlp"]
    fused = {**stacked, "attention": {"qkv": _heads(attention, "")}}
    if config.qkv_bias:
        fused["attention"]["qkv_bias"] = _heads(attention, "_bias")
    fused["mlp"] = {name: x for name, x in mlp.items() if name not in ("gate", "up")}
    fused["mlp"]["gate_up"] = jnp.stack([mlp["gate"], mlp["up"]], axis=-2)
    layers = tuple(jax.tree.map(lambda x, i=i: x[i], fused) for i in range(config.layers))
    return {**cast, "layers": layers}


def _heads(attention: Params, suffix: str) -> jax.Array:
    """Returns queries, keys and values side by side along the axis of heads."""
    q, k, v = (attention[name + suffix] for name in "qkv")
    return jnp.concatenate([q, k[..., None, :], v[..., None, :]], axis=-2)

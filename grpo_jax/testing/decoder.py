"""A decoder in float64 NumPy, one unpadded sequence at a time, with none of the tricks of the real one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from grpo_jax.models import DecoderConfig
from grpo_jax.models.rotary import frequencies


def plain_logits(config: DecoderConfig, params: Any, tokens: Sequence[int]) -> np.ndarray:
    """Returns the logits `[N, V]` after each of N tokens: full attention, every head and every expert by itself."""
    params = _float64(params)
    x = params["embed"][np.asarray(tokens)] * (np.sqrt(config.hidden) if config.scaled_embed else 1)
    for i in range(config.layers):
        layer = _pick(params["layers"], i)
        out = _attention(config, layer, _norm(x, layer["attention_norm"], config), local=config.is_local(i))
        x = x + (_norm(out, layer["post_attention_norm"], config) if config.post_norms else out)
        out = _mlp(config, layer, _norm(x, layer["mlp_norm"], config))
        x = x + (_norm(out, layer["post_mlp_norm"], config) if config.post_norms else out)
    head = params["head"] if "head" in params else params["embed"].T
    return _cap(_norm(x, params["norm"], config) @ head, config.final_cap)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Returns log-probabilities over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _attention(config: DecoderConfig, layer: Any, x: np.ndarray, *, local: bool) -> np.ndarray:
    weights, shared, position = layer["attention"], config.heads // config.kv_heads, np.arange(len(x))
    distance = position[:, None] - position
    hidden = (distance < 0) | (distance >= config.window if local else False)
    out = np.zeros_like(x)
    for head in range(config.heads):
        kv, r = divmod(head, shared)
        q, k, v = x @ weights["q"][:, kv, r], x @ weights["k"][:, kv], x @ weights["v"][:, kv]
        if config.qkv_bias:
            q, k, v = q + weights["q_bias"][kv, r], k + weights["k_bias"][kv], v + weights["v_bias"][kv]
        if config.qk_norm:
            q, k = _norm(q, layer["q_norm"], config), _norm(k, layer["k_norm"], config)
        q, k = _rotate(config, q, position, local=local), _rotate(config, k, position, local=local)
        width = config.head_width if config.query_scalar is None else config.query_scalar
        score = _cap(q @ k.T / np.sqrt(width), config.attention_cap)
        score[hidden] = -np.inf
        weight = np.exp(score - score.max(-1, keepdims=True))
        out += (weight / weight.sum(-1, keepdims=True)) @ v @ layer["out"][kv, r]
    return out + layer["out_bias"] if config.out_bias else out


def _mlp(config: DecoderConfig, layer: Any, x: np.ndarray) -> np.ndarray:
    if not config.experts:
        return _gated(config, x, layer["mlp"]["gate"], layer["mlp"]["up"], layer["down"])
    probability = np.exp(log_softmax(x @ layer["mlp"]["router"]))
    out = np.zeros_like(x)
    for n, p in enumerate(probability):
        chosen = np.argsort(-p)[: config.experts_per_token]
        total = p[chosen].sum() if config.normalised_routing else 1
        for e in chosen:
            gate, up, down = layer["mlp"]["gate"][e], layer["mlp"]["up"][e], layer["down"][e]
            out[n] += p[e] / total * _gated(config, x[n], gate, up, down)
    return out


def _gated(config: DecoderConfig, x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    z = x @ gate
    # gelu's tanh form is a sigmoid of the odd cubic, twice.
    slope = z if config.activation == "silu" else 2 * np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)
    return (z / (1 + np.exp(-slope)) * (x @ up)) @ down


def _cap(x: np.ndarray, cap: float | None) -> np.ndarray:
    return x if cap is None else cap * np.tanh(x / cap)


def _rotate(config: DecoderConfig, x: np.ndarray, position: np.ndarray, *, local: bool) -> np.ndarray:
    half = config.head_width // 2
    own_base = local and config.local_rope_theta is not None
    theta, scaling = (config.local_rope_theta, None) if own_base else (config.rope_theta, config.rope_scaling)
    frequency = frequencies(width=config.head_width, theta=theta, scaling=scaling)
    out, size = np.empty_like(x), getattr(scaling, "attention_factor", 1)
    for i in range(half):
        cos, sin = size * np.cos(position * frequency[i]), size * np.sin(position * frequency[i])
        out[:, i] = x[:, i] * cos - x[:, i + half] * sin
        out[:, i + half] = x[:, i + half] * cos + x[:, i] * sin
    return out


def _norm(x: np.ndarray, norm: Any, config: DecoderConfig) -> np.ndarray:
    scale = norm["scale"] + 1 if config.zero_centred else norm["scale"]
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps) * scale


def _float64(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _float64(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)


def _pick(tree: Any, i: int) -> Any:
    return {name: _pick(value, i) for name, value in tree.items()} if isinstance(tree, dict) else tree[i]

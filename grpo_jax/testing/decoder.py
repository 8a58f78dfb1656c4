"""A decoder in float64 NumPy, one unpadded sequence at a time, with none of the tricks of the real one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from grpo_jax.models import DecoderConfig


def plain_logits(config: DecoderConfig, params: Any, tokens: Sequence[int]) -> np.ndarray:
    """Returns the logits `[N, V]` after each of N tokens: full attention, every head by itself."""
    params = _float64(params)
    position = np.arange(len(tokens))
    x = params["embed"][np.asarray(tokens)]
    for i in range(config.layers):
        layer = _pick(params["layers"], i)
        x = x + _attention(config, layer, _norm(x, layer["attention_norm"], config), position)
        h = _norm(x, layer["mlp_norm"], config)
        gate, up = h @ layer["mlp"]["gate"], h @ layer["mlp"]["up"]
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer["down"]
    head = params["head"] if "head" in params else params["embed"].T
    return _norm(x, params["norm"], config) @ head


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Returns log-probabilities over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _attention(config: DecoderConfig, layer: Any, x: np.ndarray, position: np.ndarray) -> np.ndarray:
    weights, shared = layer["attention"], config.heads // config.kv_heads
    out = np.zeros_like(x)
    for head in range(config.heads):
        kv, r = divmod(head, shared)
        q, k, v = x @ weights["q"][:, kv, r], x @ weights["k"][:, kv], x @ weights["v"][:, kv]
        if config.qkv_bias:
            q, k, v = q + weights["q_bias"][kv, r], k + weights["k_bias"][kv], v + weights["v_bias"][kv]
        if config.qk_norm:
            q, k = _norm(q, layer["q_norm"], config), _norm(k, layer["k_norm"], config)
        q, k = _rotate(config, q, position), _rotate(config, k, position)
        score = q @ k.T / np.sqrt(config.head_width)
        score[np.triu_indices(len(position), 1)] = -np.inf
        weight = np.exp(score - score.max(-1, keepdims=True))
        out += (weight / weight.sum(-1, keepdims=True)) @ v @ layer["out"][kv, r]
    return out


def _rotate(config: DecoderConfig, x: np.ndarray, position: np.ndarray) -> np.ndarray:
    half = config.head_width // 2
    out = np.empty_like(x)
    for i in range(half):
        angle = position * config.rope_theta ** (-i / half)
        out[:, i] = x[:, i] * np.cos(angle) - x[:, i + half] * np.sin(angle)
        out[:, i + half] = x[:, i + half] * np.cos(angle) + x[:, i] * np.sin(angle)
    return out


def _norm(x: np.ndarray, norm: Any, config: DecoderConfig) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps) * norm["scale"]


def _float64(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _float64(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)


def _pick(tree: Any, i: int) -> Any:
    return {name: _pick(value, i) for name, value in tree.items()} if isinstance(tree, dict) else tree[i]

"""LoRA (arXiv:2106.09685): every adapted matrix becomes W + (alpha / rank) A B, and only A and B are trained.

The factors keep the axes of the matrix that they change: for queries `[D, K, R, C]` of one layer, A is `[D, rank]` and
B `[rank, K, R, C]`; for the attention's output `[K, R, C, D]`, A is `[K, R, C, rank]` and B `[rank, D]`. So a mesh
splits them as it splits the matrix, and their product needs no communication.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.models.adapters import TARGETS
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Params, init, logical_axes
from grpo_jax.models.settings import Lora

Adapters = dict[str, dict[str, Any]]
"""`{target: {"a": A, "b": B}}`, stacked over layers (and experts) along the leading axes."""


def init_lora(config: DecoderConfig, lora: Lora, key: jax.Array) -> Adapters:
    """Returns float32 adapters that change nothing yet: A ~ N(0, 1 / fan_in), B = 0."""
    layers = jax.eval_shape(lambda: init(config, jax.random.key(0)))["layers"]
    axes = logical_axes(config)["layers"]
    adapters = {}
    # Each target has a number of its own, so its A does not depend on which others there are.
    for number, target in enumerate(TARGETS):
        if target in lora.targets:
            shape, (stack, split) = _leaf(layers, target).shape, _sides(_leaf(axes, target))
            fan_in = math.prod(shape[stack:split])
            a = jax.random.normal(jax.random.fold_in(key, number), (*shape[:split], lora.rank)) * fan_in**-0.5
            adapters[target] = {"a": a, "b": jnp.zeros((*shape[:stack], lora.rank, *shape[split:]))}
    return adapters


def lora_axes(config: DecoderConfig, lora: Lora) -> Adapters:
    """Returns the logical axis names of every factor of `init_lora`: those of its matrix, and None for the rank."""
    layers, result = logical_axes(config)["layers"], {}
    for target in TARGETS:
        if target in lora.targets:
            axes = _leaf(layers, target)
            stack, split = _sides(axes)
            result[target] = {"a": (*axes[:split], None), "b": (*axes[:stack], None, *axes[split:])}
    return result


def attach(params: Params, adapters: Adapters, lora: Lora) -> Params:
    """Returns parameters that stand for the adapted model; nothing of the size of a weight is computed.

    Gradient: with dW that of a matrix as a table of its inputs and outputs, and s = alpha / rank,
    dA = s dW B^T and dB = s A^T dW.
    """
    return {**params, "adapters": {t: {"a": f["a"], "b": lora.scale * f["b"]} for t, f in adapters.items()}}


def _leaf(layers: Params, target: str) -> Any:
    for key in TARGETS[target]:
        layers = layers[key]
    return layers


def _sides(axes: tuple[str | None, ...]) -> tuple[int, int]:
    """Returns where a matrix's input axes begin, behind the stacked ones, and where they end."""
    stack = sum(name in ("layers", "expert") for name in axes)
    return stack, stack + 1 if axes[stack] == "embed" else len(axes) - 1

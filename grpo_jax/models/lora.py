"""LoRA (arXiv:2106.09685): every adapted matrix becomes W + (alpha / rank) A B, and only A and B are trained.

The factors keep the axes of the matrix that they change: for queries `[D, K, R, C]` of one layer, A is `[D, rank]` and
B `[rank, K, R, C]`; for the attention's output `[K, R, C, D]`, A is `[K, R, C, rank]` and B `[rank, D]`. So a mesh
splits them as it splits the matrix, and their product needs no communication.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.models.adapters import TARGETS, fold
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Params, init, logical_axes

Adapters = dict[str, dict[str, Any]]
"""`{target: {"a": A, "b": B}}`, stacked over layers (and experts) along the leading axes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Which matrices are adapted, and how.

    Attributes:
      rank: of each product A B.
      alpha: A B is multiplied by alpha / rank.
      targets: names of the matrices in every layer, of `adapters.TARGETS`. Embedding, head, norms, biases and the
        router of experts are never adapted.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = tuple(TARGETS)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank: {self.rank}; expected at least 1")
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha: {self.alpha}; expected a number above 0")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown:
            raise ValueError(f"lora.targets: {unknown[0]!r} cannot be adapted; known: {', '.join(TARGETS)}")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"lora.targets: {list(self.targets)}; expected at least one name, each of them once")

    @property
    def scale(self) -> float:
        """The factor of A B."""
        return self.alpha / self.rank


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


def merge(params: Params, adapters: Adapters, lora: Lora) -> Params:
    """Returns the adapted model as plain weights: W + (alpha / rank) A B."""
    return fold(attach(params, adapters, lora))


def _leaf(layers: Params, target: str) -> Any:
    for key in TARGETS[target]:
        layers = layers[key]
    return layers


def _sides(axes: tuple[str | None, ...]) -> tuple[int, int]:
    """Returns where a matrix's input axes begin, behind the stacked ones, and where they end."""
    stack = sum(name in ("layers", "expert") for name in axes)
    return stack, stack + 1 if axes[stack] == "embed" else len(axes) - 1

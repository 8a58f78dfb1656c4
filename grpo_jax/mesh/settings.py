"""The mesh and the rules that map logical axes to it, as a section of the configuration. Nothing here imports JAX."""

from __future__ import annotations

import math
from typing import Literal

from grpo_jax.errors import problem
from grpo_jax.settings import Count, settings

MeshAxis = Literal["data", "group", "fsdp", "tensor"]
AXES: tuple[MeshAxis, ...] = ("data", "group", "fsdp", "tensor")

Split = MeshAxis | tuple[MeshAxis, ...] | None

TOGETHER = (
    ("prompt", "sample"),
    ("prompt", "sample", "kv_heads"),
    ("vocab", "embed"),
    ("layers", "embed", "kv_heads"),
    ("layers", "embed", "mlp"),
    ("layers", "expert", "embed"),
)
"""Logical axes that meet on one array: of prompts and completions, caches, and weights."""


@settings
class Rules:
    """The mesh axes that split each logical axis: one, several together, or none (null) where it is kept whole.

    Raises:
      ValueError: two logical axes of one array are sent to the same mesh axis.
    """

    prompt: Split = ("data", "fsdp")
    """Prompts of a batch."""
    sample: Split = "group"
    """Completions of a prompt."""
    layers: Split = None
    """Layers that are stacked."""
    embed: Split = "fsdp"
    """Width of the residual stream, in weights and optimizer state."""
    vocab: Split = "tensor"
    """Tokens of the vocabulary."""
    kv_heads: Split = "tensor"
    """Key/value heads, each with its query heads."""
    mlp: Split = "tensor"
    """Inner width of the feed-forward part."""
    expert: Split = "tensor"
    """Experts of a layer."""

    def __post_init__(self) -> None:
        for names in TOGETHER:
            taken: dict[MeshAxis, str] = {}
            for name in names:
                for axis in self.axes(name):
                    other = taken.setdefault(axis, name)
                    if other != name:
                        expected = f"another mesh axis than {axis!r}, which splits {other} of the same arrays"
                        raise ValueError(problem(name, getattr(self, name), expected, "choose one, or null"))
        for name in self.__dataclass_fields__:
            if len(set(self.axes(name))) < len(self.axes(name)):
                raise ValueError(problem(name, self.axes(name), "each mesh axis once", "drop one of them"))

    def axes(self, name: str) -> tuple[MeshAxis, ...]:
        """Returns the mesh axes that split a logical axis.

        >>> Rules().axes("prompt"), Rules().axes("sample"), Rules().axes("layers")
        (('data', 'fsdp'), ('group',), ())
        """
        split = getattr(self, name)
        return () if split is None else (split,) if isinstance(split, str) else split


@settings
class MeshSettings:
    """Devices along each axis of the mesh; their product is the number of devices."""

    data: Count = 1
    """Splits prompts."""
    group: Count = 1
    """Splits the completions of a prompt."""
    fsdp: Count = 1
    """Splits prompts, and shards parameters and optimizer state."""
    tensor: Count = 1
    """Splits heads, the feed-forward width and the vocabulary."""
    rules: Rules = Rules()
    """What each of them splits, if not that."""

    def devices(self, axes: tuple[MeshAxis, ...]) -> int:
        """Returns the number of devices along these axes together."""
        return math.prod(getattr(self, axis) for axis in axes)

"""Logical axis names of parameters and activations, and the mesh axes they map to."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

Axes = tuple[str | None, ...]

RULES: Mapping[str, str | tuple[str, ...] | None] = MappingProxyType(
    {
        "prompt": ("data", "fsdp"),
        "sample": "group",
        "layers": None,
        "embed": "fsdp",
        "vocab": "tensor",
        "kv_heads": "tensor",
        "mlp": "tensor",
        "expert": "tensor",
    }
)
"""Every logical axis, and the mesh axes that split it (None: kept whole)."""


def spec(axes: Axes, rules: Mapping[str, Any] = RULES) -> PartitionSpec:
    """Returns the partition of an array whose dimensions bear the logical names `axes` (None: kept whole).

    >>> spec(("prompt", "sample", None)) == PartitionSpec(("data", "fsdp"), "group", None)
    True

    Raises:
      ValueError: a name without a rule, or two dimensions that the rules send to one mesh axis.
    """
    unknown = [name for name in axes if name is not None and name not in rules]
    if unknown:
        raise ValueError(f"logical axis {unknown[0]!r} of {axes} has no rule; known: {sorted(rules)}")
    parts = [None if name is None else rules[name] for name in axes]
    taken = [axis for part in parts if part is not None for axis in ((part,) if isinstance(part, str) else part)]
    twice = sorted({axis for axis in taken if taken.count(axis) > 1})
    if twice:
        raise ValueError(f"logical axes {axes} send two dimensions to the mesh axis {twice[0]!r}")
    return PartitionSpec(*parts)


def sharding(mesh: jax.sharding.Mesh, *axes: str | None) -> NamedSharding:
    """Returns the sharding on `mesh` of an array whose leading dimensions bear these logical names."""
    return NamedSharding(mesh, spec(axes))


def specs(axes_tree: Any) -> Any:
    """Returns the tree of partitions for a tree of logical axes (tuples are leaves)."""
    return jax.tree.map(spec, axes_tree, is_leaf=lambda leaf: isinstance(leaf, tuple))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Returns `x`, laid out by its logical axes on the mesh in force (`jax.set_mesh`); unchanged without one.

    A dimension of one is kept whole: a group of one has no completions to split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    kept = tuple(None if size == 1 else name for name, size in zip(axes, x.shape, strict=False))
    return jax.lax.with_sharding_constraint(x, spec(kept))

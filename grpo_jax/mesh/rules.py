"""Logical axis names of parameters and activations, and the partitions that rules make of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from grpo_jax.mesh.settings import Rules

Axes = tuple[str | None, ...]


def spec(rules: Rules, axes: Axes) -> PartitionSpec:
    """Returns the partition of an array whose dimensions bear the logical names `axes` (None: kept whole).

    >>> spec(Rules(), ("prompt", "sample", None)) == PartitionSpec(("data", "fsdp"), "group", None)
    True

    Raises:
      ValueError: a name without a rule, or two dimensions that the rules send to one mesh axis.
    """
    known = [field.name for field in dataclasses.fields(Rules)]
    unknown = [name for name in axes if name is not None and name not in known]
    if unknown:
        raise ValueError(f"logical axis {unknown[0]!r} of {axes} has no rule; known: {sorted(known)}")
    taken = [axis for name in axes if name is not None for axis in rules.axes(name)]
    twice = sorted({axis for axis in taken if taken.count(axis) > 1})
    if twice:
        raise ValueError(f"logical axes {axes} send two dimensions to the mesh axis {twice[0]!r}")
    return PartitionSpec(*(None if name is None else getattr(rules, name) for name in axes))


def sharding(mesh: jax.sharding.Mesh, rules: Rules, *axes: str | None) -> NamedSharding:
    """Returns the sharding on `mesh` of an array whose leading dimensions bear these logical names."""
    return NamedSharding(mesh, spec(rules, axes))


def specs(rules: Rules, axes_tree: Any) -> Any:
    """Returns the tree of partitions for a tree of logical axes (tuples are leaves)."""
    return jax.tree.map(lambda axes: spec(rules, axes), axes_tree, is_leaf=lambda leaf: isinstance(leaf, tuple))


def constrain(rules: Rules, x: jax.Array, *axes: str | None) -> jax.Array:
    """Returns `x`, laid out by its logical axes on the mesh in force (`jax.set_mesh`); unchanged without one.

    A dimension of one is kept whole: a group of one has no completions to split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    kept = tuple(None if size == 1 else name for name, size in zip(axes, x.shape, strict=False))
    return jax.lax.with_sharding_constraint(x, spec(rules, kept))

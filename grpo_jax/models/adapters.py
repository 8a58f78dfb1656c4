"""Low-rank adapters in a tree of parameters: weights that stand for W + A B, added up where they are used.

`params["adapters"]` holds a pair of factors per adapted matrix, beside `params["layers"]`. A tree with it goes wherever
a tree without it goes. `models.lora` makes such factors; here they are only added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

Tree = dict[str, Any]

TARGETS = {
    "q": ("attention", "q"),
    "k": ("attention", "k"),
    "v": ("attention", "v"),
    "out": ("out",),
    "gate": ("mlp", "gate"),
    "up": ("mlp", "up"),
    "down": ("down",),
}
"""The matrices that can be adapted: where each lies in the parameters of a layer."""


def product(a: jax.Array, b: jax.Array, ndim: int) -> jax.Array:
    """Returns A B over the last axis of `a`, an array of `ndim` dimensions.

    Leading axes that the factors share (layers, experts) are kept: they have as many dimensions too many.
    """
    shared = tuple(range(a.ndim + b.ndim - 2 - ndim))
    contracted = (a.ndim - 1,), (len(shared),)
    # A small share of the work, and its rounding would be in every activation: full float32 on every device.
    return jax.lax.dot_general(a, b, (contracted, (shared, shared)), precision=jax.lax.Precision.HIGHEST)


def adapted(layers: Tree, adapters: Tree | None) -> Tree:
    """Returns the parameters of one layer, or of all stacked, with A B added to each matrix that has adapters."""
    for target, factors in (adapters or {}).items():
        layers = _changed(layers, TARGETS[target], factors)
    return layers


def merge_adapters(params: Tree) -> Tree:
    """Returns the same model as plain weights, without adapters."""
    rest = {name: value for name, value in params.items() if name != "adapters"}
    return {**rest, "layers": adapted(params["layers"], params.get("adapters"))}


def keep_no_weights(layers: Tree, adapters: Tree) -> Callable[..., bool]:
    """Returns the rematerialisation policy that keeps everything of a layer but the sums W + A B.

    What is computed from arrays in the shape of weights and factors alone is computed again in the backward pass.
    Otherwise a scan would keep a second copy of all layers' weights for it.

    Args:
      layers, adapters: stacked over layers; only their shapes are read.
    """
    shapes = {leaf.shape[1:] for leaf in jax.tree.leaves((layers, adapters))}

    def keep(_: Any, *inputs: Any, **__: Any) -> bool:
        return not inputs or any(x.shape not in shapes for x in inputs)

    return keep


def _changed(tree: Tree, path: tuple[str, ...], factors: Tree) -> Tree:
    name, *below = path
    value = tree[name]
    if below:
        return {**tree, name: _changed(value, tuple(below), factors)}
    return {**tree, name: value + product(factors["a"], factors["b"], value.ndim)}

"""How a leaf of our parameter tree lies in a checkpoint: one tensor per layer (and expert), matrices transposed.

One rule serves every family. `embed` is stored as it is, `[V, D]`. Every other matrix is stored `[out, in]`; ours is
its transpose, its sides split into heads. What has no side of the model's width (norms, biases) is stored flat.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Params, init, logical_axes

Index = tuple[slice, ...]
STACKED = ("{layer}", "{expert}")
"""What a name holds in place of the position along each stacked axis, in the order of the axes."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf and its tensors.

    Attributes:
      path: the keys that lead to it.
      template: its tensors' name, with `{layer}` and `{expert}`.
      shape: of the whole leaf, stacked axes first.
      axes: its logical axes.
      stack: how many axes are stacked.
    """

    path: tuple[str, ...]
    template: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    stack: int

    @property
    def dotted(self) -> str:
        """Returns the path as text."""
        return ".".join(self.path)

    @property
    def inner(self) -> tuple[int, ...]:
        """Returns our shape of one tensor."""
        return self.shape[self.stack :]

    @property
    def split(self) -> int | None:
        """Returns how many axes of `inner` form the matrix's input side; None for what is no matrix."""
        names = self.axes[self.stack :]
        if len(names) < 2 or "embed" not in names:
            return None
        return 1 if names[0] == "embed" else len(names) - 1

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Returns the shape of one tensor in a checkpoint."""
        if self.path == ("embed",):
            return self.inner
        if self.split is None:
            return (math.prod(self.inner),)
        return math.prod(self.inner[self.split :]), math.prod(self.inner[: self.split])

    def tensors(self) -> Iterator[tuple[tuple[int, ...], str]]:
        """Yields (position along the stacked axes, name) of every tensor."""
        for position in itertools.product(*map(range, self.shape[: self.stack])):
            yield position, self.name(position)

    def name(self, position: tuple[int, ...]) -> str:
        """Returns the name of the tensor at a position along the stacked axes."""
        name = self.template
        for place, number in zip(STACKED, position, strict=False):
            name = name.replace(place, str(number))
        return name

    def to_stored(self, value: np.ndarray) -> np.ndarray:
        """Returns one tensor in the checkpoint's layout; the inverse of `from_stored`."""
        if self.path == ("embed",) or self.split is None:
            return value.reshape(self.stored_shape)
        return value.reshape(self.stored_shape[::-1]).T

    def from_stored(self, read: Callable[[Index], np.ndarray], index: Index) -> np.ndarray:
        """Returns the part `index` of one tensor in our layout; `read` gives slices of the stored one.

        Only the rows and columns that the part needs are read: a side is cut along the first of the axes that it is
        split into, which is the one that meshes cut.
        """
        if self.path == ("embed",):
            return read(index)
        split = self.split
        if split is None:
            return _side(self.inner, index, lambda rows: read((rows,)))
        (columns, inside), (rows, outside) = (
            _cut(self.inner[:split], index[:split]),
            _cut(self.inner[split:], index[split:]),
        )
        block = read((rows, columns)).T
        shape = (*_shape(self.inner[:split], index[0]), *_shape(self.inner[split:], index[split]))
        return block.reshape(shape)[(*inside, *outside)]


def make_leaves(config: DecoderConfig, names: Mapping[str, str]) -> list[Leaf]:
    """Returns the leaves of a model's parameters.

    Args:
      names: dotted path of every leaf -> name template (a family's `names(config)`).

    Raises:
      ValueError: `names` and the parameters do not have the same leaves.
    """
    shapes = _dotted(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    axes = _dotted(logical_axes(config))
    if names.keys() != shapes.keys():
        raise ValueError(
            f"names and parameters differ: only names have {sorted(names.keys() - shapes.keys())}, "
            f"only parameters have {sorted(shapes.keys() - names.keys())}"
        )
    return [
        Leaf(tuple(path.split(".")), names[path], shape.shape, axes[path], sum(s in names[path] for s in STACKED))
        for path, shape in shapes.items()
    ]


def get(params: Params, path: tuple[str, ...]) -> Any:
    """Returns the leaf at a path."""
    for key in path:
        params = params[key]
    return params


def put(params: Params, path: tuple[str, ...], value: Any) -> None:
    """Writes a leaf, and the dicts that lead to it, into `params`."""
    *above, last = path
    for key in above:
        params = params.setdefault(key, {})
    params[last] = value


def _dotted(tree: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {".".join(path): tree}
    parts = (_dotted(value, (*path, key)) for key, value in tree.items())
    return {name: leaf for part in parts for name, leaf in part.items()}


def _cut(shape: tuple[int, ...], index: Index) -> tuple[slice, Index]:
    """Returns the range of a flattened side that holds `index`, and what of that range `index` is."""
    start, stop, _ = index[0].indices(shape[0])
    unit = math.prod(shape[1:])
    return slice(start * unit, stop * unit), (slice(None), *index[1:])


def _shape(shape: tuple[int, ...], first: slice) -> tuple[int, ...]:
    start, stop, _ = first.indices(shape[0])
    return (stop - start, *shape[1:])


def _side(shape: tuple[int, ...], index: Index, read: Callable[[slice], np.ndarray]) -> np.ndarray:
    rows, inside = _cut(shape, index)
    return read(rows).reshape(_shape(shape, index[0]))[inside]

"""Where the live tokens of a batch stand while a model computes them.

`core/` sees completions as `[P, G, T]`; a model sees cells of packed rows (`models/rows.py`), so that no layer computes
padding. A layout is the relabelling of one to the other: the batch is cut into M micro-batches of D cells, and every
completion has its place in one of them. Whatever a model says of a token comes back as `[P, G, T]`.

The prompts of a batch lie in `parts` runs of equal length, one for each group of devices that holds prompts; the cells
of a part hold completions of that part alone, so that tokens stay on the device that drew them.

Axes: M micro-batches, D cells at once, c completions of a cell, N prompts of a cell, G rows of a cell, U tokens of
a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from grpo_jax.models.rows import Packing, Rows
from grpo_jax.types import PromptBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """The room of every cell: what selects a compiled program."""

    parts: int
    """Runs of prompts, D a multiple of them."""
    rows: int
    """G."""
    length: int
    """U."""
    prompt_length: int
    """Tokens that prompts are cut to."""
    plain: bool = False
    """Every row holds one completion at most, and every cell one prompt: masks are the same for all rows."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cells:
    """The cells of one micro-batch, or of all (with an axis M before the others)."""

    completion: Int[Array, "D c"]
    """Which completion of the part, prompt * group + sample; -1 where there is none."""
    start: Int[Array, "D c"]
    """Its first place in the rows of its cell, laid end to end; never falling. One without tokens stands at the end."""
    length: Int[Array, "D c"]
    """Its live tokens."""
    slot: Int[Array, "D c"]
    """Which prompt of the cell it follows."""
    prompt: Int[Array, "D N"]
    """Which prompts of the part the cell holds."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The places of a batch's completions."""

    size: Size = dataclasses.field(metadata={"static": True})
    cells: Cells
    """With an axis M of micro-batches; only the first `count` are computed."""
    count: Int[Array, ""] | int

    def cells_of(self, number: int | Array) -> Cells:
        """Returns the cells of one micro-batch."""
        return jax.tree.map(lambda x: jnp.asarray(x)[number], self.cells)


def padded(prompts: int, group: int, prompt_length: int, length: int, *, micro_prompts: int | None = None) -> Layout:
    """Returns the layout that computes every position: each cell is one prompt, and each row one completion.

    Micro-batch i holds prompts i, i + M, i + 2 M, ..., so that each is spread over the devices as the whole batch is.

    Raises:
      ValueError: `micro_prompts` does not divide `prompts`.
    """
    at_once = micro_prompts or prompts
    if prompts % at_once:
        raise ValueError(f"micro_prompts: {at_once} does not divide the {prompts} prompts of a minibatch")
    count = prompts // at_once
    shape = (count, at_once, group)
    number, sample = np.arange(count, dtype=np.int32), np.arange(group, dtype=np.int32)
    cells = Cells(
        completion=np.broadcast_to(number[:, None, None] * group + sample, shape),
        start=np.broadcast_to(sample * length, shape),
        length=np.full(shape, length, np.int32),
        slot=np.zeros(shape, np.int32),
        prompt=np.broadcast_to(number[:, None, None], (count, at_once, 1)),
    )
    size = Size(parts=at_once, rows=group, length=length, prompt_length=prompt_length, plain=True)
    return Layout(size=size, cells=cells, count=count)


def fold(layout: Layout, add: Callable[[Any, Cells], Any], start: Any) -> Any:
    """Returns what `add` makes of `start` and every micro-batch, one after the other.

    Gradient: in reverse mode where `count` is a number that is known before compilation.
    """
    if isinstance(layout.count, int) and layout.count == 1:
        return add(start, layout.cells_of(0))
    return jax.lax.fori_loop(0, layout.count, lambda i, sums: add(sums, layout.cells_of(i)), start)


def pick(size: Size, cells: Cells, tree: Any) -> Any:
    """Returns leaves `[P, G, ...]` as `[D, c, ...]`: of each completion of a cell. Axes of tokens are cut to U.

    What stands in place of a completion that is not there is arbitrary.
    """

    def leaf(x: jax.Array) -> jax.Array:
        x = x[:, :, : size.length] if x.ndim > 2 else x
        return _taken(size, cells.completion, x.reshape(-1, *x.shape[2:]))

    return jax.tree.map(leaf, tree)


def live(size: Size, cells: Cells) -> Bool[Array, "D c U"]:
    """Returns the tokens of the completions of cells that are computed."""
    return jnp.arange(size.length) < cells.length[..., None]


def to_rows(size: Size, cells: Cells, x: Array) -> Array:
    """Returns `[D, c, U, ...]` of completions as `[D, G, U, ...]` of rows; arbitrary where a row is empty."""
    place = _owner(size, cells) * size.length + _index(size, cells)
    flat = _take(x.reshape(len(x), -1, *x.shape[3:]), place)
    return flat.reshape(len(x), size.rows, size.length, *x.shape[3:])


def from_rows(size: Size, cells: Cells, x: Array) -> Array:
    """Returns `[D, G, U, ...]` of rows as `[D, c, U, ...]` of completions; arbitrary behind their ends."""
    room = size.rows * size.length
    place = jnp.minimum(cells.start[..., None] + jnp.arange(size.length), room - 1)
    flat = _take(x.reshape(len(x), room, *x.shape[3:]), place.reshape(len(x), -1))
    return flat.reshape(*place.shape, *x.shape[3:])


def rows(size: Size, cells: Cells, prompt: PromptBatch, tokens: Int[Array, "P G T"]) -> Rows:
    """Returns the prompts and rows of a micro-batch."""
    prompt = jax.tree.map(lambda x: _taken(size, cells.prompt, x[:, : size.prompt_length]), prompt)
    tokens = to_rows(size, cells, pick(size, cells, tokens))
    if size.plain:
        return Rows(prompt=prompt, tokens=tokens)
    owner, index = _owner(size, cells), _index(size, cells)
    inside = index < _take(cells.length, owner)
    shape = (len(owner), size.rows, size.length)
    packing = Packing(
        # The rest of a row is a segment of its own.
        segment=jnp.where(inside, owner, -1).reshape(shape),
        index=jnp.minimum(index, size.length - 1).reshape(shape),
        slot=_take(cells.slot, owner).reshape(shape),
    )
    return Rows(prompt=prompt, tokens=tokens, packing=packing)


def scatter(size: Size, cells: Cells, out: Array, x: Array) -> Array:
    """Returns `out` `[P, G, T, ...]` with the values `[D, G, U, ...]` of a micro-batch's rows in their places."""
    x = jnp.where(_expand(live(size, cells), x.ndim), from_rows(size, cells, x), 0)
    flat = out.reshape(size.parts, -1, *out.shape[2:])
    place = cells.completion.reshape(size.parts, -1)
    x = x.reshape(size.parts, place.shape[1], *x.shape[2:])

    def put(old: Array, where: Array, new: Array) -> Array:
        # One that is not there is dropped: its place is beyond the last.
        return old.at[jnp.where(where < 0, len(old), where), : size.length].set(new, mode="drop")

    return jax.vmap(put)(flat, place, x).reshape(out.shape)


def _owner(size: Size, cells: Cells) -> Int[Array, "D G*U"]:
    """Returns the completion (its place in the cell) that each place of a cell belongs to, or follows."""
    room = size.rows * size.length
    marks = jnp.zeros((len(cells.start), room + 1), jnp.int32)
    marks = jax.vmap(lambda row, start: row.at[start].add(1))(marks, cells.start)
    return jnp.maximum(jnp.cumsum(marks[:, :room], axis=-1) - 1, 0)


def _index(size: Size, cells: Cells) -> Int[Array, "D G*U"]:
    """Returns how far each place is behind the start of its completion."""
    return jnp.arange(size.rows * size.length) - _take(cells.start, _owner(size, cells))


def _taken(size: Size, index: Int[Array, "D k"], x: Array) -> Array:
    """Returns rows of `x`, whose first axis runs over all parts, by their index in their part."""
    each = _take(x.reshape(size.parts, -1, *x.shape[1:]), index.reshape(size.parts, -1))
    return each.reshape(*index.shape, *x.shape[1:])


def _take(x: Array, index: Int[Array, "d k"]) -> Array:
    """Returns `x[d, index[d, k]]`, with indices outside of it at its ends."""
    return jax.vmap(lambda values, i: values.at[i].get(mode="clip"))(x, index)


def _expand(mask: Array, ndim: int) -> Array:
    return mask.reshape(*mask.shape, *(1,) * (ndim - mask.ndim))

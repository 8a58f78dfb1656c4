"""Which completions share a cell: lengths in, a layout out. On the host, with NumPy, and a function of lengths alone.

Rows have the length of the longest completion, prompts that of the longest prompt, both rounded up to one of a few
buckets. Completions go into the rows of a cell prompt by prompt, the longest first, each where it leaves the least
room, and prompts into cells that they fill up; what does not fit waits for the next cell. Every cell of a batch has
the same size, so that one program computes them all; how many there are is known at run time only.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from grpo_jax.learn.layout import Cells, Layout, Size

EIGHTHS = (1, 2, 3, 4, 6, 8)
"""Lengths of rows and prompts, and numbers of rows, in eighths of the most: few, so that programs are few."""

PROMPTS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Prompts of a cell."""

COMPLETIONS_PER_ROW = 16
"""Completions that a row has room for."""

AHEAD = 8
"""Prompts among which one is sought that fills up a cell: they are read once per cell."""

KEYS = 4
"""Attention over so many times D keys takes as long as all products of a token with weights (measured on a CPU)."""

NEAR = 1.05
"""Of the shapes that cost about as little as the best one does, the largest is taken."""

KNOWN = 1.15
"""A shape that there is a program for is taken before a new one, unless it costs this much more than the best."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """The full size of a batch, and what of it may be computed at once."""

    length: int
    """T, the most tokens of a completion."""
    prompt_length: int
    """S."""
    hidden: int
    """D, the width of the model."""
    micro_prompts: int | None = None
    """Prompts, with all completions at their limit, whose activations there is memory for; None is a whole batch."""
    parts: int = 1
    """Groups of devices that hold different prompts."""
    row_devices: int = 1
    """Devices that the rows of a cell are spread over."""


class Shape(NamedTuple):
    """The room of a cell, and how many there are at once."""

    rows: int
    length: int
    prompts: int
    prompt_length: int
    lanes: int
    """Cells of a part that are computed at once."""
    plain: bool = False
    """One prompt to a cell, and one completion to a row."""

    @property
    def positions(self) -> int:
        """Tokens that a model computes for all that are computed at once."""
        return self.lanes * (self.rows * self.length + self.prompts * self.prompt_length)

    def cost(self, hidden: int) -> float:
        """Returns about what a model of this width does for it, in tokens without attention."""
        keys = self.length + self.prompts * self.prompt_length
        return self.positions + self.lanes * self.rows * self.length * keys / (KEYS * hidden)


class Place(NamedTuple):
    """Where a completion stands in its cell."""

    completion: int
    start: int
    length: int
    slot: int


class Cell(NamedTuple):
    """What stands in a cell."""

    places: list[Place]
    prompts: list[int]


def pack(
    lengths: np.ndarray,
    prompt_lengths: np.ndarray,
    room: Room,
    *,
    order: np.ndarray | None = None,
    known: Sequence[Shape] = (),
) -> tuple[Layout, Shape, float]:
    """Returns a layout of live tokens, its cells' shape, and the share of padding in what is computed.

    A function of its arguments, so that a resumed run computes what the first one did.

    Args:
      lengths: `[P, G]`, tokens of each completion that are live; 0 where none is.
      prompt_lengths: `[P]`.
      order: `[N, P / N]`, the prompts of several minibatches; the layout is then one for each, along a first axis.
      known: shapes that there are programs for, which are taken again where they are about as good as the best.

    Raises:
      ValueError: `room.micro_prompts` does not divide the prompts of a minibatch, or the mesh does not.

    >>> room = Room(length=8, prompt_length=4, hidden=64)
    >>> layout, shape, padding = pack(np.array([[4, 1, 2, 1]]), np.array([4]), room)
    >>> layout.size.rows, layout.size.length, layout.cells.start[0, 0, :4].tolist(), padding
    (2, 4, [0, 4, 6, 7], 0.0)
    """
    batches = [lengths] if order is None else [lengths[index] for index in order]
    prompts = len(batches[0])
    at_once = room.micro_prompts or prompts
    if prompts % at_once:
        raise ValueError(f"micro_prompts: {at_once} does not divide the {prompts} prompts of a minibatch")
    if at_once % room.parts:
        raise ValueError(f"micro_prompts: {at_once} is not a multiple of the {room.parts} devices along prompts")
    lanes = at_once // room.parts
    of_prompts = [prompt_lengths] if order is None else [prompt_lengths[index] for index in order]
    shape, filled = _smallest(batches, of_prompts, room, lanes, known)
    counts = [_micro_batches(parts, shape.lanes) for parts in filled]
    # The number of places for micro-batches is that of a batch at its limits, so that it seldom changes.
    full = prompts * lengths.shape[1] * room.length // (shape.rows * shape.length * shape.lanes * room.parts)
    most = 1 << (max(full, *counts) - 1).bit_length()
    size = Size(
        parts=room.parts,
        rows=shape.rows,
        length=shape.length,
        prompt_length=shape.prompt_length,
        plain=shape.plain,
    )
    layouts = [
        Layout(
            size=size,
            cells=_arrays(parts, shape, most),
            count=np.int32(count),
        )
        for parts, count in zip(filled, counts, strict=True)
    ]
    # A prompt with no live token behind it is in no cell.
    needed = (of_prompt[batch.any(1)] for batch, of_prompt in zip(batches, of_prompts, strict=True))
    live = sum(int(each.sum()) for each in (*batches, *needed))
    padding = 1 - live / (sum(counts) * room.parts * shape.positions)
    layout = layouts[0] if order is None else jax.tree.map(lambda *x: np.stack(x), *layouts)
    return layout, shape, padding


def bucket(size: int, most: int) -> int:
    """Returns the smallest of the few eighths of `most`, rounded up, that holds `size`.

    >>> [bucket(size, 20) for size in (0, 3, 4, 9, 20)]
    [3, 3, 5, 10, 20]
    """
    return next(room for room in (-(-most * n // 8) for n in EIGHTHS) if room >= size)


def _smallest(
    batches: Sequence[np.ndarray],
    prompt_lengths: Sequence[np.ndarray],
    room: Room,
    lanes: int,
    known: Sequence[Shape],
) -> tuple[Shape, list[list[list[Cell]]]]:
    """Returns the shape of cells that costs the least, or nearly, and the cells of each batch's parts."""
    group = batches[0].shape[1]
    longest = max(int(batch.max()) for batch in batches)
    prompt_length = bucket(max(int(each.max()) for each in prompt_lengths), room.prompt_length)
    prompt_tokens = sum(int(each[batch.any(1)].sum()) for batch, each in zip(batches, prompt_lengths, strict=True))
    mean = max(sum(int(batch.sum()) for batch in batches) / sum(map(len, batches)), 1.0)

    def tried(shapes: Iterable[Shape]) -> list[tuple[float, Shape, list[list[list[Cell]]]]]:
        every, same = [], {}
        for shape in shapes:
            cell = shape._replace(lanes=1)
            if cell not in same:
                same[cell] = [[_fill(part, shape) for part in np.split(batch, room.parts)] for batch in batches]
            filled = same[cell]
            cost = sum(_micro_batches(parts, shape.lanes) for parts in filled) * shape.cost(room.hidden)
            every.append((cost, shape, filled))
        return every

    fits = (shape for shape in known if shape.length >= longest and shape.prompt_length >= prompt_length)
    old = min(tried(fits), key=lambda each: each[0], default=None)
    live = sum(int(batch.sum()) for batch in batches) / room.parts
    # What no shape can go below spares the search where a known one is near it.
    least = live * (1 + (longest + prompt_length) / (KEYS * room.hidden)) + prompt_tokens / room.parts
    if old is None or old[0] > KNOWN * least:
        # Completions of half a row and more fill it badly; the next bucket may hold two of them.
        lengths = {bucket(longest, room.length), bucket(min(longest * 4 // 3 + 1, room.length), room.length)}
        every = [shape for n in sorted(lengths) for shape in _shapes(group, n, prompt_length, mean, room, lanes)]
        new = tried(every)
        least = min(cost for cost, _, _ in new)
        if old is None or old[0] > KNOWN * least:
            old = max(
                (each for each in new if each[0] <= NEAR * least), key=lambda each: (each[1].positions, each[1].plain)
            )
    _, shape, filled = old
    return shape, filled


def _shapes(group: int, length: int, prompt_length: int, mean: float, room: Room, lanes: int) -> list[Shape]:
    """Returns the shapes to try: none needs more memory than one prompt with all completions at their limit.

    Args:
      mean: live tokens of a group, on average.
    """
    shapes = set()
    most = group * room.length // length
    tokens = group * room.length + room.prompt_length
    scores = group * room.length * (room.length + room.prompt_length)
    for eighths in EIGHTHS:
        rows = -(-most * eighths // 8)
        rows = -(-rows // room.row_devices) * room.row_devices
        bound = min((tokens - rows * length), scores // (rows * length) - length) // prompt_length
        if bound < 1 and rows > room.row_devices:
            continue
        for share in (rows * length / mean, rows * length / mean + 1):
            prompts = next((n for n in PROMPTS if n >= share), PROMPTS[-1])
            prompts = max((n for n in PROMPTS if n <= min(prompts, bound)), default=1)
            wide = {Shape(rows, length, prompts, prompt_length, -(-lanes // n)) for n in (1, 2, 4)}
            shapes |= wide | {shape._replace(plain=True) for shape in wide if prompts == 1}
    return sorted(shapes)


def _fill(lengths: np.ndarray, shape: Shape) -> list[Cell]:
    """Returns the cells of a part's completions `[P, G]`.

    A cell takes what fits of the first prompt that waits, then those of the next few that fit whole, the largest first,
    and for the rest of its room parts of them.
    """
    group = lengths.shape[1]
    waiting = {
        prompt: sorted(((int(n), sample) for sample, n in enumerate(row) if n), key=lambda each: (-each[0], each[1]))
        for prompt, row in enumerate(lengths)
        if row.any()
    }
    cells: list[Cell] = []
    while waiting:
        free, cell = [shape.length] * shape.rows, Cell([], [])
        first, *others = itertools.islice(waiting, 1 + AHEAD)
        others.sort(key=lambda prompt: -sum(n for n, _ in waiting[prompt]))
        for prompt, whole in [(first, False), *((each, True) for each in others), *((each, False) for each in others)]:
            if len(cell.prompts) == shape.prompts or not any(free):
                break
            if prompt in cell.prompts:
                continue
            at_most = COMPLETIONS_PER_ROW * shape.rows - len(cell.places)
            after, fits, left = _into_rows(waiting[prompt], free, shape, at_most)
            if not fits or (whole and left):
                continue
            free, slot = after, len(cell.prompts)
            cell.prompts.append(prompt)
            cell.places.extend(Place(prompt * group + sample, start, n, slot) for start, n, sample in fits)
            if left:
                waiting[prompt] = left
            else:
                del waiting[prompt]
        cells.append(cell)
    return _with_empty(cells, np.flatnonzero(lengths.reshape(-1) == 0), shape)


def _into_rows(
    completions: list[tuple[int, int]], free: list[int], shape: Shape, at_most: int
) -> tuple[list[int], list[tuple[int, int, int]], list[tuple[int, int]]]:
    """Returns the free tokens of rows after all that fits is in them, the starts of that, and what does not fit."""
    free, fits, left = free.copy(), [], []
    for n, sample in completions:
        wide = (row for row in range(shape.rows) if free[row] >= (shape.length if shape.plain else n))
        row = min(wide, key=free.__getitem__, default=None)
        if row is None or len(fits) == at_most:
            left.append((n, sample))
            continue
        fits.append(((row + 1) * shape.length - free[row], n, sample))
        free[row] -= n
    return free, fits, left


def _with_empty(cells: list[Cell], empty: np.ndarray, shape: Shape) -> list[Cell]:
    """Returns the cells with the completions without live tokens, which take no place in a row but count as rows."""
    room, end = COMPLETIONS_PER_ROW * shape.rows, shape.rows * shape.length
    left = empty.tolist()
    for cell in cells:
        while left and len(cell.places) < room:
            cell.places.append(Place(left.pop(0), end, 0, 0))
    more = [left[i : i + room] for i in range(0, len(left), room)]
    return cells + [Cell([Place(completion, end, 0, 0) for completion in part], []) for part in more]


def _micro_batches(parts: list[list[Cell]], lanes: int) -> int:
    return max(-(-len(cells) // lanes) for cells in parts)


def _arrays(parts: list[list[Cell]], shape: Shape, most: int) -> Cells:
    """Returns the cells of all parts `[most, parts * lanes, ...]`, each part's in turn over its lanes."""
    room, lead = COMPLETIONS_PER_ROW * shape.rows, (most, len(parts), shape.lanes)
    completion, slot = np.full((*lead, room), -1, np.int32), np.zeros((*lead, room), np.int32)
    start, length = np.full((*lead, room), shape.rows * shape.length, np.int32), np.zeros((*lead, room), np.int32)
    prompt = np.zeros((*lead, shape.prompts), np.int32)
    for part, cells in enumerate(parts):
        for number, cell in enumerate(cells):
            at = (number // shape.lanes, part, number % shape.lanes)
            places = sorted(cell.places, key=lambda place: place.start)
            for array, values in zip((completion, start, length, slot), zip(*places, strict=True), strict=True):
                array[at][: len(places)] = values
            prompt[at][: len(cell.prompts)] = cell.prompts
    flat = (most, math.prod(lead[1:]), -1)
    named = {"completion": completion, "start": start, "length": length, "slot": slot, "prompt": prompt}
    return Cells(**{name: array.reshape(flat) for name, array in named.items()})

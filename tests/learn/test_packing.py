"""Which completions share a cell: each stands once, nothing overlaps, little is wasted, and few shapes exist."""

import dataclasses
import math

import chex
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from grpo_jax.learn import packing
from grpo_jax.learn.packing import Room, Shape, bucket, pack


@st.composite
def batches(draw):
    """Lengths of completions and prompts, the room that they are for, and the prompts of minibatches or None.

    A few completions are at the limit and many are empty: both are what a packer can get wrong.
    """
    prompts, group = draw(st.sampled_from([1, 2, 4, 8])), draw(st.integers(1, 6))
    room = Room(
        length=draw(st.integers(1, 40)),
        prompt_length=draw(st.integers(1, 24)),
        hidden=draw(st.sampled_from([1, 16, 4096])),
        micro_prompts=draw(st.sampled_from([None, 1, 2])),
        parts=draw(st.sampled_from([1, 2])),
        row_devices=draw(st.sampled_from([1, 2])),
    )
    length = st.one_of(st.integers(0, room.length), st.sampled_from([0, 0, 1, room.length]))
    lengths = draw(st.lists(length, min_size=prompts * group, max_size=prompts * group))
    prompt_lengths = draw(st.lists(st.integers(1, room.prompt_length), min_size=prompts, max_size=prompts))
    minibatches = draw(st.sampled_from([None, 1, 2]))
    order = None
    if minibatches is not None:
        order = np.array(draw(st.permutations(range(prompts))), np.int32)
        assume(prompts % minibatches == 0)
        order = order.reshape(minibatches, -1)
    size = prompts // (minibatches or 1)
    at_once = room.micro_prompts or size
    assume(size % at_once == 0 and at_once % room.parts == 0)
    return np.array(lengths).reshape(prompts, group), np.array(prompt_lengths), room, order


def of_minibatches(lengths, prompt_lengths, room, order, **options):
    """The layout of each minibatch, with the lengths of its own completions and prompts."""
    layout, shape, padding = pack(lengths, prompt_lengths, room, order=order, **options)
    if order is None:
        return [(layout, lengths, prompt_lengths)], shape, padding
    several = []
    for i, index in enumerate(order):
        cells = dataclasses.replace(
            layout.cells, **{f.name: getattr(layout.cells, f.name)[i] for f in dataclasses.fields(layout.cells)}
        )
        one = dataclasses.replace(layout, cells=cells, count=layout.count[i])
        several.append((one, lengths[index], prompt_lengths[index]))
    return several, shape, padding


def standing(layout, prompts, group):
    """Every completion of the cells that are computed: its number in the batch, cell, start, length and prompt."""
    cells, parts = layout.cells, layout.size.parts
    lanes = cells.completion.shape[1] // parts
    per_part = prompts // parts
    for m in range(int(layout.count)):
        for d in range(cells.completion.shape[1]):
            first = d // lanes * per_part
            for k in np.flatnonzero(cells.completion[m, d] >= 0):
                assert cells.completion[m, d, k] < per_part * group
                follows = cells.prompt[m, d, cells.slot[m, d, k]]
                yield (
                    first * group + int(cells.completion[m, d, k]),
                    (m, d),
                    int(cells.start[m, d, k]),
                    int(cells.length[m, d, k]),
                    first + int(follows),
                )


@given(batches(), st.booleans())
def test_every_completion_stands_in_exactly_one_place_of_its_own(case, plain):
    """As long as it is, behind its prompt, in one row, over no other; and nothing stands where nobody computes.

    In a plain shape every row has one at most, at its beginning.
    """
    lengths, _, room, _ = case
    group, options = lengths.shape[1], {}
    with pytest.MonkeyPatch.context() as patch:
        if plain:
            patch.setattr(packing, "KNOWN", math.inf)
            options["known"] = [Shape(2 * room.row_devices, room.length, 1, room.prompt_length, 1, plain=True)]
        minibatches, shape, _ = of_minibatches(*case, **options)
    assert not plain or [shape] == options["known"]
    for layout, expected, of_prompts in minibatches:
        size, cells = layout.size, layout.cells
        for name in ("rows", "length", "prompt_length", "plain"):
            assert getattr(size, name) == getattr(shape, name)
        assert size.parts == room.parts
        assert cells.prompt.shape[-1] == shape.prompts
        assert of_prompts.max() <= size.prompt_length <= room.prompt_length
        assert size.rows % room.row_devices == 0
        every = list(standing(layout, len(expected), group))
        assert sorted(number for number, *_ in every) == list(range(expected.size))
        taken = {}
        for number, cell, start, length, prompt in every:
            assert length == expected.reshape(-1)[number]
            room_of_cell = taken.setdefault(cell, np.zeros(size.rows * size.length, int))
            if length:
                assert prompt == number // group
                assert start // size.length == (start + length - 1) // size.length
                assert not size.plain or start % size.length == 0
                room_of_cell[start : start + (size.length if size.plain else length)] += 1
            else:
                assert start == size.rows * size.length
        assert all(places.max() <= 1 for places in taken.values())
        assert not size.plain or shape.prompts == 1
        assert (np.diff(cells.start, axis=-1) >= 0).all()
        assert (cells.completion[int(layout.count) :] == -1).all()
        assert (cells.length[cells.completion < 0] == 0).all()
        assert cells.prompt.min() >= 0
        assert cells.prompt.max() < len(expected) // room.parts


@given(batches())
def test_the_padding_is_what_is_computed_and_no_token(case):
    """A prompt that stands in two cells is computed twice and needed once; one without a live token behind it, never.

    So it is a share, of all sorts of batches.
    """
    lengths, prompt_lengths, room, _ = case
    minibatches, shape, padding = of_minibatches(*case)
    computed = sum(int(layout.count) for layout, *_ in minibatches) * room.parts * shape.lanes
    computed *= shape.rows * shape.length + shape.prompts * shape.prompt_length
    needed = lengths.sum() + prompt_lengths[lengths.any(-1)].sum()
    np.testing.assert_allclose(padding, 1 - needed / computed)
    assert 0 <= padding <= 1


@given(batches())
def test_a_cell_needs_no_more_memory_than_one_prompt_with_all_completions_at_their_limit(case):
    """Neither in positions nor in attention scores, except where a cell cannot be smaller; nor are more computed at
    once than there is room for."""
    lengths, _, room, order = case
    _, shape, _ = of_minibatches(*case)
    size = lengths.shape[0] if order is None else order.shape[1]
    assert 1 <= shape.lanes <= (room.micro_prompts or size) // room.parts
    limit, keys = lengths.shape[1] * room.length, shape.length + shape.prompts * shape.prompt_length
    if shape.rows > room.row_devices or shape.prompts > 1:
        assert shape.rows * shape.length + shape.prompts * shape.prompt_length <= limit + room.prompt_length
        assert shape.rows * shape.length * keys <= limit * (room.length + room.prompt_length)


@given(batches())
def test_a_layout_is_a_function_of_the_arguments(case):
    """And of nothing else: not of the call before, and not of the arrays' later fate."""
    lengths, prompt_lengths, room, order = case
    first = pack(lengths, prompt_lengths, room, order=order)
    again = pack(lengths.copy(), prompt_lengths.copy(), room, order=None if order is None else order.copy())
    chex.assert_trees_all_equal(first[0], again[0])
    assert first[1:] == again[1:]
    assert first[0].size == again[0].size


@given(st.integers(1, 3000))
def test_a_bucket_holds_its_size_and_there_are_at_most_eight_of_them(most):
    every = [bucket(size, most) for size in range(most + 1)]
    assert all(size <= room <= most for size, room in enumerate(every))
    assert every == sorted(every)
    assert len(set(every)) <= 8
    assert every[-1] == most


def test_prompts_are_cut_to_a_bucket_of_the_longest():
    room = Room(length=8, prompt_length=64, hidden=16)
    for longest, expected in ((1, 8), (8, 8), (9, 16), (20, 24), (33, 48), (49, 64)):
        layout, _, _ = pack(np.full((2, 2), 8), np.array([1, longest]), room)
        assert layout.size.prompt_length == expected


def test_each_minibatch_has_a_layout_over_its_own_prompts():
    """Lengths tell the prompts apart: minibatch 0 holds those of prompts 2 and 1, minibatch 1 those of 0 and 3."""
    lengths = np.array([[1, 2], [3, 4], [5, 6], [7, 8]])
    order = np.array([[2, 1], [0, 3]], np.int32)
    minibatches, _, _ = of_minibatches(lengths, np.full(4, 2), Room(length=8, prompt_length=2, hidden=16), order)
    assert len(minibatches) == 2
    for (layout, _, _), expected in zip(minibatches, ([5, 6, 3, 4], [1, 2, 7, 8]), strict=True):
        assert [length for *_, length, _ in sorted(standing(layout, 2, 2))] == expected
    # Two epochs: prompts that are visited twice have a place in two layouts.
    twice, _, padding = pack(
        lengths, np.full(4, 2), Room(length=8, prompt_length=2, hidden=16), order=np.concatenate([order, order])
    )
    assert twice.count.tolist() == twice.count.tolist()[:2] * 2
    assert 0 <= padding < 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_prompts": 3}, "micro_prompts: 3 does not divide the 8 prompts of a minibatch"),
        ({"micro_prompts": 4, "parts": 8}, "micro_prompts: 4 is not a multiple of the 8 devices along prompts"),
        ({"parts": 3}, "micro_prompts: 8 is not a multiple of the 3 devices along prompts"),
    ],
    ids=["micro", "parts", "whole"],
)
def test_what_cannot_be_cut_is_refused(changes, message):
    room = Room(length=8, prompt_length=4, hidden=16, **changes)
    with pytest.raises(ValueError, match=f"^{message}$"):
        pack(np.ones((8, 2), int), np.ones(8, int), room)


def test_it_is_the_minibatch_that_has_to_be_cut():
    room = Room(length=8, prompt_length=4, hidden=16, micro_prompts=8)
    with pytest.raises(ValueError, match=r"^micro_prompts: 8 does not divide the 4 prompts of a minibatch$"):
        pack(np.ones((8, 2), int), np.ones(8, int), room, order=np.arange(8).reshape(2, 4))


def geometric(rng, prompts=64, group=8, mean=64, limit=512):
    """Lengths as of a policy that ends with the same chance at every token."""
    return np.minimum(rng.geometric(1 / mean, (prompts, group)), limit)


@pytest.mark.parametrize(
    ("prompt_length", "hidden", "micro_prompts", "steps", "most"),
    [(64, 512, 1, 200, 0.10), (16, 64, 4, 60, 0.10), (64, 512, None, 60, 0.20)],
    ids=["one", "four", "whole"],
)
def test_few_shapes_and_little_padding_over_a_run(prompt_length, hidden, micro_prompts, steps, most):
    """Batches of 64 x 8 completions of a mean of 64 tokens and a limit of 512, the shapes so far known to each.

    Where all of a batch is computed at once, the last micro-batch is a large part of it, and seldom full.
    """
    rng, known, paddings = np.random.default_rng(0), [], []
    room = Room(length=512, prompt_length=prompt_length, hidden=hidden, micro_prompts=micro_prompts)
    for _ in range(steps):
        _, shape, padding = pack(geometric(rng), np.full(64, prompt_length), room, known=known)
        known += [shape] if shape not in known else []
        paddings.append(padding)
    assert len(known) <= 8
    assert np.mean(paddings) <= most


def test_a_known_shape_is_taken_before_a_new_one_unless_it_costs_much_more():
    room, rng = Room(length=64, prompt_length=16, hidden=64), np.random.default_rng(1)
    lengths, prompt_lengths = rng.integers(1, 17, (8, 4)), np.full(8, 8)
    _, best, _ = pack(lengths, prompt_lengths, room)
    near = best._replace(length=best.length + 1)
    far = Shape(4, 64, 1, 16, 8)
    assert near != best
    assert pack(lengths, prompt_lengths, room, known=[near])[1] == near
    assert pack(lengths, prompt_lengths, room, known=[far])[1] == best
    assert pack(lengths, prompt_lengths, room, known=[far, near, best])[1] in (near, best)
    # What a completion or a prompt does not fit in is no choice.
    for small in (best._replace(length=15), best._replace(prompt_length=7)):
        assert pack(np.full((8, 4), 16), prompt_lengths, room, known=[small])[1] != small


def test_a_batch_at_its_limits_is_packed_without_a_gap():
    """64 tokens each, prompts of 16: every row is one completion, and the masks need not say so."""
    layout, shape, padding = pack(np.full((8, 4), 64), np.full(8, 16), Room(length=64, prompt_length=16, hidden=64))
    assert (shape.length, shape.prompts, shape.prompt_length, shape.plain) == (64, 1, 16, True)
    assert int(layout.count) * shape.lanes * shape.rows == 32
    assert padding < 0.2


def test_a_batch_without_a_live_token_has_cells_all_the_same():
    """An aggregator may count rows that have none."""
    layout, _, _ = pack(np.zeros((4, 3), int), np.full(4, 5), Room(length=8, prompt_length=8, hidden=16))
    every = list(standing(layout, 4, 3))
    assert sorted(number for number, *_ in every) == list(range(12))
    assert {length for *_, length, _ in every} == {0}


def test_a_cell_takes_the_prompt_that_fills_it_up_and_no_part_of_one_before_that():
    """Of three that wait behind the first, the second fits whole and is the largest that does."""
    shape = Shape(rows=1, length=8, prompts=2, prompt_length=4, lanes=1)
    cells = packing._fill(np.array([[5, 0], [1, 0], [3, 0], [2, 2]]), shape)
    assert [cell.prompts for cell in cells] == [[0, 2], [1, 3]]
    apart = packing._fill(np.array([[7, 0], [4, 4], [2, 3]]), shape)
    assert [cell.prompts for cell in apart] == [[0], [1], [2]]

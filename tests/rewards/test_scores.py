"""Scores in another order and in parts."""

import numpy as np
import pytest

from grpo_jax.rewards import Scores


@pytest.fixture
def scores():
    """Of four completions; `late` failed on the last one, `chunky` on a chunk but on no completion alone."""
    return Scores(
        total=np.float32([0, 1, 2, 3]),
        valid=np.array([True, True, False, True]),
        each={"late": np.float32([5, 6, 7, np.nan]), "chunky": np.float32([1, 2, 3, 4])},
        failed={"late": np.array([False, False, False, True]), "chunky": np.zeros(4, bool)},
        errors={"late": "why", "chunky": "together"},
        steps=[[(1, 0.5)], None, [(2, 1.5)], None],
    )


def test_take_orders_every_field(scores):
    taken = scores.take([3, 0, 2])
    assert taken.total.tolist() == [3.0, 0.0, 2.0]
    assert taken.total.dtype == np.float32
    assert taken.valid.tolist() == [True, True, False]
    np.testing.assert_array_equal(taken.each["late"], np.float32([np.nan, 5, 7]))
    assert taken.each["chunky"].tolist() == [4.0, 1.0, 3.0]
    assert taken.failed["late"].tolist() == [True, False, False]
    assert taken.steps == [None, [(1, 0.5)], [(2, 1.5)]]
    assert taken.errors == scores.errors


def test_a_part_keeps_the_errors_of_its_own_failures(scores):
    assert scores.take([0, 1, 2]).errors == {"chunky": "together"}, "an error that is nobody's goes with every part"
    assert scores.take([3]).errors == {"late": "why", "chunky": "together"}


def test_nothing_can_be_taken_and_what_is_not_there_cannot(scores):
    nothing = scores.take([])
    assert nothing.total.shape == nothing.valid.shape == nothing.each["late"].shape == (0,)
    assert nothing.steps == []
    with pytest.raises(IndexError):
        scores.take([0, 4])


@pytest.mark.parametrize(("size", "totals"), [(2, [[0, 1], [2, 3]]), (3, [[0, 1, 2], [3]]), (9, [[0, 1, 2, 3]])])
def test_groups_are_cut_in_order_and_the_last_may_be_short(scores, size, totals):
    groups = scores.groups(size)
    assert [group.total.tolist() for group in groups] == totals
    assert [group.failures["late"] for group in groups] == [int(3 in row) for row in totals]
    assert ["late" in group.errors for group in groups] == [3 in row for row in totals]

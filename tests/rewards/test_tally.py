"""Outcomes gathered in every order give the same scores, errors included."""

import itertools

import numpy as np
import pytest
import reward_functions as functions

from grpo_jax.rewards import Reward
from grpo_jax.rewards.attempt import Outcome
from grpo_jax.rewards.tally import Tally

REWARDS = {"first": Reward(functions.length, name="first"), "second": Reward(functions.length, name="second")}


def gathered(outcomes):
    """What a run of workers does that answer in this order: failed calls are repeated, and the repetitions follow."""
    tally = Tally(REWARDS)
    for name, span, outcome in outcomes:
        for alone in tally.add(name, span, outcome):
            good = alone.start % 2 == 0
            ended = Outcome(values=[10.0 + alone.start]) if good else Outcome(raised=f"{name} alone {alone.start}")
            assert tally.add(name, alone, ended) == []
    return tally.scores(6)


def test_the_order_of_outcomes_does_not_matter():
    outcomes = [
        ("first", range(2), Outcome(values=[1.0, None])),
        ("first", range(2, 4), Outcome(raised="first on 2 and 3")),
        ("first", range(4, 6), Outcome(raised="first on 4 and 5")),
        ("second", range(6), Outcome(values=[[(3, 1.0), (1, 0.0)]] * 5 + [None])),
    ]
    for order in itertools.permutations(outcomes):
        scores = gathered(order)
        assert scores.total.tolist() == [1.0, 0.0, 12.0, 0.0, 14.0, 0.0]
        assert scores.valid.tolist() == [True] * 5 + [False]
        assert scores.failed["first"].tolist() == [False, False, False, True, False, True]
        assert scores.failures == {"first": 2, "second": 0}
        assert scores.errors == {"first": "first on 2 and 3"}, "of the first failing call, not of the first to answer"
        assert scores.steps == [[(1, 0.0), (3, 1.0)]] * 5 + [None]
        np.testing.assert_array_equal(scores.each["second"], np.float32([0.5] * 5 + [np.nan]))


def test_the_first_fault_is_told_in_every_order():
    outcomes = [
        ("second", range(3), Outcome(invalid="a fault of the second")),
        ("first", range(3), Outcome(values=[1.0] * 3)),
        ("first", range(3, 4), Outcome(invalid="the first fault")),
        ("first", range(4, 6), Outcome(invalid="a later fault")),
    ]
    for order in itertools.permutations(outcomes):
        with pytest.raises(ValueError, match=r"^reward 'first' the first fault$"):
            gathered(order)

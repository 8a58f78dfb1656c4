"""Completions handed in one after the other: what calls see, in which order scores come, what is refused."""

import dataclasses

import numpy as np
import pytest
import reward_functions as functions

from grpo_jax.rewards import Reward, Rewards


def columns(count, start=0):
    return {"column": [0.5 * i for i in range(start, start + count)]}


def same(first, second):
    np.testing.assert_equal(dataclasses.asdict(first), dataclasses.asdict(second))


@pytest.mark.parametrize("workers", [0, 2])
def test_scores_come_in_the_order_of_adding_and_are_those_of_one_call(workers):
    """Adds of whole chunks, so that workers get the same calls and errors tell the same."""
    completions = ["a", "raise", "bb", "ccc", "a", "raise here", "d", "eeee"]
    rewards = [Reward(functions.raises), Reward(functions.length, weight=0.5), Reward(functions.column)]
    with Rewards(rewards, workers=workers, chunk=2) as runner, runner.begin() as scoring:
        for start, stop in ((0, 2), (2, 6), (6, 6), (6, 8)):
            part = completions[start:stop]
            scoring.add(["p"] * len(part), part, columns(len(part), start))
        scores = scoring.result()
        same(scores, runner.score(["p"] * 8, completions, columns(8)))
        same(scores, scoring.result())
    assert scores.total.tolist() == [1.5, 3.0, 3.0, 4.0, 3.5, 7.5, 4.5, 6.5]
    assert scores.failures == {"raises": 2, "length": 0, "column": 0}


def test_without_workers_each_reward_is_called_once_with_everything_by_result():
    calls = []

    def notes(prompts, completions, column):
        calls.append((prompts, completions, column))
        return [float(len(completions))] * len(completions)

    with Rewards([Reward(notes)]) as runner, runner.begin() as scoring:
        scoring.add(["p"], ["a"], {"column": (1,)})
        scoring.add(np.array(["q", "r"]), ("b", "c"), {"column": np.array([2, 3])})
        assert scoring.ready, "there is no worker to wait for"
        assert calls == []
        assert scoring.result().total.tolist() == [3.0] * 3
        scoring.result()
    assert calls == [(["p", "q", "r"], ["a", "b", "c"], [1, 2, 3])]


def test_without_workers_the_time_in_rewards_was_waited(monkeypatch):
    clock = iter([10.0, 12.5])
    monkeypatch.setattr("grpo_jax.rewards.scoring.time.monotonic", lambda: next(clock))
    with Rewards([Reward(functions.length)]) as runner, runner.begin() as scoring:
        scoring.add(["p"], ["a"], {})
        assert scoring.waited == 0.0
        scoring.result()
    assert scoring.waited == 2.5


def test_nothing_added_is_no_scores():
    with Rewards([Reward(functions.length)]) as runner, runner.begin() as scoring:
        assert scoring.result().total.shape == (0,)


def test_what_score_refuses_add_refuses_and_forgets():
    with Rewards([Reward(functions.column)]) as runner, runner.begin() as scoring:
        scoring.add(["p"], ["a"], columns(1))
        with pytest.raises(ValueError, match=r"prompts has 1 entries for 2 completions"):
            scoring.add(["p"], ["a", "b"], columns(2))
        with pytest.raises(ValueError, match=r"column has 3 entries for 1 completions"):
            scoring.add(["p"], ["a"], columns(3))
        with pytest.raises(ValueError, match=r"reward 'column' cannot be called with the dataset's columns \[\]"):
            scoring.add(["p"], ["a"], {})
        scoring.add(["p"], ["b"], columns(1, start=1))
        assert scoring.result().total.tolist() == [0.0, 0.5]


def test_columns_may_not_change_between_adds():
    with Rewards([Reward(functions.length)]) as runner, runner.begin() as scoring:
        scoring.add(["p"], ["a"], {})
        with pytest.raises(ValueError, match=r"columns \['column'\] came after \[\]: hand in the same ones"):
            scoring.add(["p"], ["a"], columns(1))


@pytest.mark.parametrize("workers", [0, 1])
def test_after_the_result_nothing_is_added_and_after_close_nothing_is_told(workers):
    with Rewards([Reward(functions.length)], workers=workers) as runner:
        scoring, closed = runner.begin(), runner.begin()
        for each in (scoring, closed):
            each.add(["p"], ["a"], {})
        assert scoring.result().total.tolist() == [1.0]
        with pytest.raises(RuntimeError, match=r"after result\(\) or close\(\): begin another scoring"):
            scoring.add(["p"], ["a"], {})
        for each in (scoring, closed):
            each.close()
            each.close()
        assert scoring.result().total.tolist() == [1.0], "close takes no result away"
        with pytest.raises(RuntimeError, match=r"after result\(\) or close\(\)"):
            closed.add(["p"], ["a"], {})
        with pytest.raises(RuntimeError, match=r"result\(\) came after close\(\)"):
            closed.result()

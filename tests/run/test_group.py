"""The record of a step: groups are chosen, joined and dropped as what lists hold."""

import dataclasses

import jax
import numpy as np
import pytest

from grpo_jax.rewards import Reward, Rewards
from grpo_jax.run.draw import choose
from grpo_jax.run.group import Group, correct, place, place_grades, rewarded, rewards_differ
from grpo_jax.types import PromptBatch, Rollout

G, S, T = 2, 3, 4


def group(index, texts=("a", "bb")):
    rng = np.random.default_rng(index)
    return Group(
        index=index,
        prompt=f"p{index}",
        columns={"answer": str(index)},
        completions=list(texts),
        prompt_tokens=PromptBatch(tokens=np.full(S, index, np.int32), mask=np.ones(S, bool)),
        rollout=Rollout(
            tokens=rng.integers(3, 9, (G, T), dtype=np.int32),
            mask=np.ones((G, T), bool),
            logp=rng.normal(size=(G, T)).astype(np.float32),
            ended=np.ones(G, bool),
        ),
    )


def length(prompts, completions, answer, **_):
    return [None if text == "?" else len(text) + int(a) for text, a in zip(completions, answer, strict=True)]


def fails_on_b(prompts, completions, **_):
    return [1.0 / (text != "bb") for text in completions]


REWARDS = [Reward(length), Reward(fails_on_b, weight=0.5)]


def scored(*groups):
    with Rewards(REWARDS) as rewards:
        return rewarded(rewards, groups)


def test_every_group_gets_the_scores_of_its_own_completions():
    first, second = scored(group(1), group(2, ("ccc", "?")))
    np.testing.assert_array_equal(first.scores.total, [2.5, 3.0])
    np.testing.assert_array_equal(second.scores.each["length"], [5.0, np.nan])
    np.testing.assert_array_equal(second.scores.total, [5.5, 0.5])
    assert first.scores.failures == {"length": 0, "fails_on_b": 1}
    assert "ZeroDivisionError" in first.scores.errors["fails_on_b"]
    assert second.scores.failures == {"length": 0, "fails_on_b": 0}
    assert second.scores.errors == {}


def test_groups_whose_rewards_differ_are_chosen_first_in_the_order_they_were_drawn():
    flat = [dataclasses.replace(g, index=10 + g.index) for g in scored(group(0, ("a", "a")), group(1, ("a", "a")))]
    apart = scored(group(2), group(3))
    assert [rewards_differ(g) for g in (*flat, *apart)] == [False, False, True, True]
    joined = [flat[0], apart[0], flat[1], apart[1]]
    assert [g.index for g in choose(joined, 2)] == [2, 3]
    assert [g.index for g in choose(joined, 3)] == [10, 2, 3]
    assert [g.index for g in choose(joined, 4)] == [10, 2, 11, 3]
    assert [g.index for g in choose([g for g in joined if g.index != 2], 2)] == [10, 3]


def test_rewards_that_do_not_apply_make_no_difference():
    (only,) = scored(group(0, ("?", "ccc")))
    scores = dataclasses.replace(only.scores, valid=np.array([False, True]))
    assert not rewards_differ(dataclasses.replace(only, scores=scores))


def test_steps_that_differ_are_a_difference_where_totals_are_equal():
    (one,) = scored(group(0, ("a", "a")))
    steps = dataclasses.replace(one.scores, steps=[[(0, 1.0), (1, 0.0)], [(0, 0.0), (1, 1.0)]])
    assert rewards_differ(dataclasses.replace(one, scores=steps))


def test_a_completion_is_correct_where_the_first_reward_is_positive():
    groups = scored(group(0, ("?", "a")), group(1))
    np.testing.assert_array_equal(correct(groups), [[False, True], [True, True]])


@pytest.mark.parametrize("advantage", ["GroupNormalised", "TermNormalised", "greedy_baseline"])
def test_on_the_device_the_groups_are_an_axis(tiny_run, advantage):
    run = tiny_run(f"objective={{preset: ppo_clip, advantage: {advantage}}}", "sampling.group=2", rewards=[length])
    run = dataclasses.replace(run, rewards=tuple(REWARDS))
    groups = [dataclasses.replace(g, greedy_reward=7.0 + g.index) for g in scored(group(4), group(1), group(3))]
    prompt, rollout = place(run, groups)
    grades = place_grades(run, groups)
    np.testing.assert_array_equal(prompt.tokens[:, 0], [4, 1, 3])
    assert rollout.tokens.shape == rollout.logp.shape == (3, G, T)
    assert isinstance(rollout.logp, jax.Array)
    for i, each in enumerate(groups):
        np.testing.assert_array_equal(rollout.logp[i], each.rollout.logp)
        np.testing.assert_array_equal(grades.reward[i], each.scores.total)
    asked = {"TermNormalised": "term_reward", "greedy_baseline": "greedy_reward"}.get(advantage)
    for name in ("term_reward", "greedy_reward", "step_reward"):
        assert (getattr(grades, name) is not None) == (name == asked), name
    if asked == "term_reward":
        np.testing.assert_array_equal(grades.term_weight, [1.0, 0.5])
        np.testing.assert_array_equal(grades.term_reward[0, :, 0], [5.0, 6.0])
    if asked == "greedy_reward":
        np.testing.assert_array_equal(grades.greedy_reward, [11.0, 8.0, 10.0])


def raises_on_many(prompts, completions, **_):
    if len(completions) > 1:
        raise RuntimeError("one at a time")
    return [1.0]


def test_an_error_that_no_single_completion_repeats_is_kept():
    with Rewards([Reward(raises_on_many)]) as rewards:
        (one,) = rewarded(rewards, [group(0)])
    assert one.scores.failures == {"raises_on_many": 0}
    assert "one at a time" in one.scores.errors["raises_on_many"]

"""The scores of rewards that run in this process: sums, masks, counts and messages."""

import numpy as np
import pytest
import reward_functions as functions

from grpo_jax.rewards import Reward, Rewards

NAN = float("nan")


def score(rewards, completions, **columns):
    with Rewards(rewards) as runner:
        return runner.score(["p"] * len(completions), completions, columns)


def test_total_is_the_weighted_sum_over_the_rewards_that_apply():
    scores = score(
        [Reward(functions.length, weight=0.5), Reward(functions.column, weight=-2.0)],
        ["a", "bb", "ccc"],
        column=[1, None, NAN],
    )
    np.testing.assert_array_equal(scores.total, np.float32([0.5 - 2.0, 1.0, 1.5]))
    assert scores.total.dtype == np.float32
    np.testing.assert_array_equal(scores.each["column"], np.float32([1, NAN, NAN]))
    np.testing.assert_array_equal(scores.each["length"], np.float32([1, 2, 3]))
    assert scores.valid.all()
    assert scores.failures == {"length": 0, "column": 0}
    assert scores.errors == {}
    assert scores.steps == [None] * 3


def test_a_completion_to_which_no_reward_applies_is_invalid():
    scores = score([Reward(functions.column)], ["a", "b", "c"], column=[0.0, None, NAN])
    assert scores.valid.tolist() == [True, False, False]
    assert scores.total.tolist() == [0.0, 0.0, 0.0]
    assert scores.failures == {"column": 0}, "not applying is no failure"


def test_each_reward_is_called_once_with_everything():
    assert score([Reward(functions.sizes)], ["a"] * 37).total.tolist() == [37.0] * 37


def test_coroutine_functions_are_awaited():
    assert score([Reward(functions.slow_length)], ["a", "bb"]).total.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("function", [functions.raises, functions.raises_unloadable, functions.leaves])
def test_only_the_completions_that_raise_are_masked_and_counted(function):
    scores = score([Reward(function, name="it")], ["a", "raise", "b"])
    assert scores.valid.tolist() == [True, False, True]
    np.testing.assert_array_equal(scores.each["it"], np.float32([1, NAN, 1]))
    assert scores.failures == {"it": 1}


def test_another_reward_still_scores_what_one_could_not():
    scores = score([Reward(functions.raises), Reward(functions.length)], ["a", "raise"])
    assert scores.total.tolist() == [2.0, 5.0]
    assert scores.valid.all()


def test_the_first_traceback_is_kept():
    scores = score([Reward(functions.raises)], ["a", "raise"])
    assert "KeyError: 'on purpose'" in scores.errors["raises"]
    assert "reward_functions.py" in scores.errors["raises"]


def test_a_reward_that_fails_on_everything_is_counted_not_raised():
    scores = score([Reward(functions.raises)], ["raise"] * 3)
    assert scores.failures == {"raises": 3}
    assert not scores.valid.any()


def test_an_infinite_reward_is_a_failure_of_its_completion():
    scores = score([Reward(functions.column)], ["a", "b"], column=[1.0, -np.inf])
    assert scores.valid.tolist() == [True, False]
    assert scores.failures == {"column": 1}
    assert "-inf" in scores.errors["column"]


def test_numbers_of_other_types_count():
    values = [True, np.float32(0.5), np.array(2.0), np.bool_(False)]
    assert score([Reward(functions.column)], list("abcd"), column=values).total.tolist() == [1.0, 0.5, 2.0, 0.0]


def test_process_rewards_are_merged_by_position_with_their_weights():
    first = [[(2, 1.0), (5, 0.0)], None, []]
    scores = score(
        [
            Reward(lambda prompts, completions, **_: first, name="first", weight=2.0),
            Reward(functions.stepwise, name="second", weight=-1.0),
            Reward(functions.length, weight=0.0),
        ],
        ["abcde", "b", "c"],
        steps=[[(4, 3.0)], [(1, NAN), (1, 0.5)], None],
    )
    assert scores.steps == [[(2, 2.0), (4, -3.0), (5, 0.0)], [(1, -0.5)], None]
    np.testing.assert_array_equal(scores.each["first"], np.float32([0.5, NAN, NAN]))
    np.testing.assert_array_equal(scores.each["second"], np.float32([3.0, 0.5, NAN]))
    assert scores.total.tolist() == [0.0, 0.0, 0.0], "steps do not enter the total"


def test_a_process_reward_alone_makes_a_completion_valid():
    scores = score([Reward(functions.stepwise)], ["a", "b"], steps=[[(1, 0.0)], None])
    assert scores.valid.tolist() == [True, False]


def test_no_completions_are_no_scores():
    scores = score([Reward(functions.length)], [])
    assert scores.total.shape == scores.valid.shape == scores.each["length"].shape == (0,)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0], r"reward 'it' returned 1 values for 2 completions"),
        (1.0, r"reward 'it' returned 1.0 \(float\): return a list"),
        ("ab", r"reward 'it' returned 'ab' \(str\): return a list"),
        (None, r"reward 'it' returned None \(NoneType\): return a list"),
        (["1", "2"], r"reward 'it' returned '1' \(str\): return a number"),
        ([1.0, object], r"reward 'it' returned <class 'object'> \(type\): return a number"),
        ([[1.0], None], r"reward 'it' returned the step 1.0 \(float\): give pairs"),
        ([[(-1, 1.0)], None], r"reward 'it' returned a step that ends at -1"),
        ([[(0.5, 1.0)], None], r"reward 'it' returned a step that ends at 0.5"),
        ([[(1, 1.0)], 2.0], r"reward 'it' returned both numbers and lists of steps"),
    ],
)
def test_a_result_that_breaks_the_contract_is_an_error(result, message):
    with pytest.raises(ValueError, match=message):
        score([Reward(lambda prompts, completions: result, name="it")], ["a", "b"])


def test_columns_that_a_reward_needs_or_refuses_are_named():
    with pytest.raises(ValueError, match=r"'column' cannot be called with .*\['answer'\]: missing .*'column'"):
        score([Reward(functions.column)], ["a"], answer=["1"])
    with pytest.raises(ValueError, match=r"'it' cannot be called .* unexpected keyword argument 'answer'.*`\*\*_`"):
        score([Reward(lambda prompts, completions: [1.0], name="it")], ["a"], answer=["1"])


def test_lengths_must_agree():
    runner = Rewards([Reward(functions.length)])
    with pytest.raises(ValueError, match=r"prompts has 1 entries for 2 completions"):
        runner.score(["p"], ["a", "b"], {})
    with pytest.raises(ValueError, match=r"answer has 3 entries for 2 completions"):
        runner.score(["p", "p"], ["a", "b"], {"answer": ["1"] * 3})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rewards": []}, "rewards is empty"),
        ({"rewards": [Reward(functions.length)] * 2}, r"one name in \['length', 'length'\]"),
        ({"workers": -1}, "workers=-1 is negative"),
        ({"deadline": 0.0}, "deadline=0.0 is not positive"),
        ({"chunk": 0}, "chunk=0 is too small"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Rewards(**({"rewards": [Reward(functions.length)]} | arguments))


def test_a_reward_is_checked():
    with pytest.raises(ValueError, match=r"weight=nan of reward .*length"):
        Reward(functions.length, weight=NAN)
    with pytest.raises(ValueError, match="name is empty"):
        Reward(type("Callable", (), {"__call__": lambda self, prompts, completions: []})())
    assert Reward(functions.length).name == "length"
    assert Reward(functions.length, name="other").name == "other"

"""Rewards in worker processes: what raises, hangs or dies is masked and counted, and the rest keeps its score."""

import os
import signal
import time

import numpy as np
import pytest
import reward_functions as functions

from grpo_jax.rewards import Reward, Rewards

NAN = float("nan")


def repeat(completions, **columns):
    return ["p"] * len(completions), completions, columns


def test_offenders_are_masked_and_counted_and_the_others_keep_their_score():
    rewards = [Reward(f) for f in (functions.raises, functions.hangs, functions.dies, functions.length)]
    completions = ["a", "raise", "bb", "hang", "die", "ccc", "a"]
    started = time.monotonic()
    with Rewards(rewards, workers=2, deadline=1.0, chunk=4) as runner:
        scores = runner.score(*repeat(completions))
        again = runner.score(*repeat(["a", "b"]))
    assert time.monotonic() - started < 40
    np.testing.assert_array_equal(scores.each["raises"], np.float32([1, NAN, 1, 1, 1, 1, 1]))
    np.testing.assert_array_equal(scores.each["hangs"], np.float32([2, 2, 2, NAN, 2, 2, 2]))
    np.testing.assert_array_equal(scores.each["dies"], np.float32([3, 3, 3, 3, NAN, 3, 3]))
    np.testing.assert_array_equal(scores.each["length"], np.float32([1, 5, 2, 4, 3, 3, 1]))
    assert scores.total.tolist() == [7.0, 10.0, 8.0, 8.0, 6.0, 9.0, 7.0]
    assert scores.failures == {"raises": 1, "hangs": 1, "dies": 1, "length": 0}
    assert "KeyError: 'on purpose'" in scores.errors["raises"]
    assert "no result within the deadline of 1.0 s" in scores.errors["hangs"]
    assert "the worker died with exit code 7" in scores.errors["dies"]
    assert "length" not in scores.errors
    assert again.total.tolist() == [7.0, 7.0], "the pool outlives its workers"
    assert again.failures == {"raises": 0, "hangs": 0, "dies": 0, "length": 0}


def test_a_worker_is_another_process_off_the_accelerator_and_gets_chunks_in_order():
    rewards = [Reward(f) for f in (functions.process_id, functions.platform, functions.sizes, functions.column)]
    with Rewards(rewards, workers=1, chunk=4) as runner:
        scores = runner.score(*repeat(["a"] * 10, column=list(range(10))))
    assert (scores.each["process_id"] != os.getpid()).all()
    assert scores.each["platform"].all()
    assert scores.each["sizes"].tolist() == [4.0] * 8 + [2.0] * 2
    assert scores.each["column"].tolist() == list(range(10))


def test_an_exception_that_cannot_be_unpickled_harms_only_its_completion():
    with Rewards([Reward(functions.raises_unloadable), Reward(functions.slow_length)], workers=1) as runner:
        scores = runner.score(*repeat(["raise", "a"]))
    np.testing.assert_array_equal(scores.each["raises_unloadable"], np.float32([NAN, 1]))
    np.testing.assert_array_equal(scores.each["slow_length"], np.float32([5, 1]))


def test_a_worker_that_dies_between_two_steps_is_replaced():
    with Rewards([Reward(functions.process_id)], workers=1) as runner:
        worker = int(runner.score(*repeat(["a"])).total[0])
        os.kill(worker, signal.SIGKILL)
        scores = runner.score(*repeat(["a", "b"]))
    assert scores.failures == {"process_id": 0}
    assert scores.valid.all()
    assert worker not in scores.total.tolist()


def test_a_wrong_number_of_values_is_an_error_from_a_worker_too():
    with (
        Rewards([Reward(functions.one_too_few)], workers=1) as runner,
        pytest.raises(ValueError, match="reward 'one_too_few' returned 1 values for 2 completions"),
    ):
        runner.score(*repeat(["a", "b"]))


def test_a_function_that_workers_cannot_import_is_refused_at_once():
    with pytest.raises(ValueError, match=r"cannot be sent to a worker .* top level of a module, or set workers=0"):
        Rewards([Reward(lambda prompts, completions: [1.0], name="it")], workers=1)


def test_workers_that_cannot_start_are_an_error_not_a_hang(monkeypatch, capfd):
    # Picklable here, unknown there: what a function typed into a notebook looks like to a worker.
    monkeypatch.setattr(functions, "typed", lambda prompts, completions: [1.0], raising=False)
    functions.typed.__qualname__ = "typed"
    functions.typed.__module__ = "reward_functions"
    with pytest.raises(RuntimeError, match="the reward workers cannot start"):
        Rewards([Reward(functions.typed, name="typed")], workers=1)
    assert "typed" in capfd.readouterr().err

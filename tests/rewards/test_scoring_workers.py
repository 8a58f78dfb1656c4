"""Completions handed to workers as they end, and workers that hang, die or break under several scorings."""

import gc
import os
import signal
import time

import numpy as np
import pytest
import reward_functions as functions

from grpo_jax.rewards import Reward, Rewards
from grpo_jax.rewards.pool import Pool

NAN = float("nan")


def until(condition, seconds=30.0):
    """Returns once the condition holds; a deadline, not a time to wait."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def waits_for_a_worker(pool, ended):
    raise AssertionError("result() waits for a worker")


@pytest.fixture
def starts(monkeypatch):
    """Grows with every start of workers."""
    starts, start = [], Pool._start
    monkeypatch.setattr(Pool, "_start", lambda pool: starts.append(pool) or start(pool))
    return starts


def add(scoring, completions, file=None):
    columns = {} if file is None else {"file": [str(file)] * len(completions)}
    scoring.add(["p"] * len(completions), completions, columns)


def test_what_is_added_is_called_before_the_result_is_asked_for(tmp_path):
    with Rewards([Reward(functions.touches)], workers=1) as runner, runner.begin() as scoring:
        add(scoring, ["a"], tmp_path / "called")
        until((tmp_path / "called").exists)
        add(scoring, ["b"], tmp_path / "again")
        until((tmp_path / "again").exists)
        assert scoring.result().total.tolist() == [1.0, 1.0]


def test_every_completion_is_called_once(tmp_path):
    with Rewards([Reward(functions.writes_down)], workers=1, chunk=2) as runner, runner.begin() as scoring:
        for part in (["a", "b", "c"], ["d"], ["e", "f"]):
            add(scoring, part, tmp_path / "notes")
        assert scoring.result().valid.all()
    assert (tmp_path / "notes").read_text().split() == ["a", "b", "c", "d", "e", "f"]


def test_what_hangs_or_dies_later_loses_nothing_from_before():
    rewards = [Reward(functions.hangs), Reward(functions.dies), Reward(functions.length)]
    with Rewards(rewards, workers=2, deadline=1.0, chunk=2) as runner, runner.begin() as scoring:
        add(scoring, ["a", "bb", "ccc"])
        add(scoring, ["hang", "die", "d"])
        add(scoring, ["e"])
        scores = scoring.result()
    np.testing.assert_array_equal(scores.each["hangs"], np.float32([2, 2, 2, NAN, 2, 2, 2]))
    np.testing.assert_array_equal(scores.each["dies"], np.float32([3, 3, 3, 3, NAN, 3, 3]))
    assert scores.each["length"].tolist() == [1, 2, 3, 4, 3, 1, 1]
    assert scores.failures == {"hangs": 1, "dies": 1, "length": 0}
    assert scores.errors == {
        "hangs": "no result within the deadline of 1.0 s for 2 completion(s)\n",
        "dies": "the worker died with exit code 7 on 2 completion(s)\n",
    }


def test_ready_follows_the_workers_and_a_ready_result_waits_for_nothing(tmp_path, monkeypatch):
    with Rewards([Reward(functions.awaits_file)], workers=1) as runner, runner.begin() as scoring:
        assert scoring.ready, "nothing was added"
        add(scoring, ["a", "bb"], tmp_path / "go")
        assert not scoring.ready
        (tmp_path / "go").touch()
        until(lambda: scoring.ready)
        assert scoring.waited == 0.0
        monkeypatch.setattr(Pool, "next", waits_for_a_worker)
        assert scoring.result().total.tolist() == [1.0, 2.0]
        assert scoring.waited < 0.5


def test_the_time_that_result_waits_is_counted(tmp_path, monkeypatch):
    """The gate opens when `result` begins to wait, and the worker looks for it every 10 ms."""
    wait = Pool.next

    def opens(self, ended):
        time.sleep(0.2)
        (tmp_path / "go").touch()
        return wait(self, ended)

    with Rewards([Reward(functions.awaits_file)], workers=1) as runner, runner.begin() as scoring:
        add(scoring, ["a"], tmp_path / "go")
        monkeypatch.setattr(Pool, "next", opens)
        scoring.result()
    assert scoring.waited >= 0.2


def test_to_look_whether_it_is_ready_repeats_what_failed(monkeypatch):
    with Rewards([Reward(functions.raises)], workers=1) as runner, runner.begin() as scoring:
        add(scoring, ["a", "raise", "b"])
        until(lambda: scoring.ready)
        monkeypatch.setattr(Pool, "next", waits_for_a_worker)
        assert scoring.result().valid.tolist() == [True, False, True]


@pytest.mark.parametrize("first", [0, 1])
def test_a_broken_pool_is_restarted_once_for_every_live_scoring(first, starts):
    """A stopped worker takes no call, so both scorings' calls are in its pipe when it is killed."""
    with Rewards([Reward(functions.process_id)], workers=1, chunk=2) as runner, runner.begin() as done:
        worker = int(runner.score(["p"], ["a"], {}).total[0])
        add(done, ["a"])
        until(lambda: not done._ended.empty())
        os.kill(worker, signal.SIGSTOP)
        with runner.begin() as a, runner.begin() as b:
            add(a, ["a", "b", "c"])
            add(b, ["d"])
            os.kill(worker, signal.SIGKILL)
            results = [scoring.result() for scoring in ((a, b) if first == 0 else (b, a))]
        assert done.result().total.tolist() == [worker], "what had ended is not called again"
    assert len(starts) == 2
    for scores in results:
        assert scores.valid.all()
        assert scores.failures == {"process_id": 0}
        assert worker not in scores.total.tolist()


def test_workers_that_die_before_they_take_a_call_are_given_up(starts):
    with Rewards([Reward(functions.column)], workers=1) as runner, runner.begin() as scoring:
        scoring.add(["p"], ["a"], {"column": [functions.EndsItsReader()]})
        with pytest.raises(RuntimeError, match="the reward workers died 3 times between calls"):
            scoring.result()
    assert len(starts) == 3


def test_an_abandoned_scoring_leaves_nothing_behind():
    with Rewards([Reward(functions.length)], workers=1) as runner:
        scoring = runner.begin()
        add(scoring, ["a"])
        until(lambda: not scoring._ended.empty())
        assert len(runner._pool._open) == 1
        del scoring
        until(lambda: gc.collect() >= 0 and len(runner._pool._open) == 0)


def test_a_column_that_cannot_be_sent_is_an_error():
    with Rewards([Reward(functions.column)], workers=1) as runner, runner.begin() as scoring:
        scoring.add(["p"], ["a"], {"column": [lambda: None]})
        with pytest.raises(ValueError, match=r"reward 'column' cannot be sent its columns .*: set workers=0"):
            scoring.result()


def test_close_cancels_what_runs(tmp_path):
    """The only worker hangs for a minute in a call with no deadline to speak of."""
    rewards = [Reward(functions.hangs), Reward(functions.touches)]
    with Rewards(rewards, workers=1, deadline=300.0) as runner:
        with runner.begin() as scoring:
            add(scoring, ["a"], tmp_path / "started")
            until((tmp_path / "started").exists)
            add(scoring, ["hang"], tmp_path / "hung")
        assert scoring.ready
        started = time.monotonic()
        scores = runner.score(["p"], ["b"], {"file": [str(tmp_path / "next")]})
        assert time.monotonic() - started < 30
    assert scores.total.tolist() == [3.0]


def test_a_missed_deadline_after_a_cancelled_call_is_not_held_against_a_completion_at_once(tmp_path):
    """A worker that is killed for a cancelled call may have begun another one by then."""
    with Rewards([Reward(functions.hangs_once)], workers=1, deadline=1.0) as runner:
        with runner.begin() as blamed:
            add(blamed, ["a"], tmp_path / "one")
            assert blamed.result().failures == {"hangs_once": 1}, "nothing was cancelled"
        with runner.begin() as given_up:
            add(given_up, ["a"], tmp_path / "two")
        with runner.begin() as spared:
            add(spared, ["a"], tmp_path / "three")
            assert spared.result().total.tolist() == [4.0]


def test_a_result_after_the_workers_were_ended_is_an_error_not_a_hang():
    with Rewards([Reward(functions.hangs)], workers=1, deadline=60.0) as runner:
        scoring = runner.begin()
        add(scoring, ["hang"])
    with pytest.raises(RuntimeError, match="the reward workers were ended"):
        scoring.result()
    scoring.close()
    with pytest.raises(RuntimeError, match="the reward workers were ended"):
        runner.score(["p"], ["a"], {})

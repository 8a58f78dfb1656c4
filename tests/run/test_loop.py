"""Whole runs: what they write, resume bit by bit, bounded compilation, every kind of objective."""

import dataclasses
import json

import chex
import jax
import numpy as np
import optax
import pytest

from grpo_jax.run import CheckpointError, Checkpoints, train
from grpo_jax.run.record import read_metrics
from tests.run import rewards as functions
from tests.run import transformations


def resuming(run, how):
    return dataclasses.replace(run, settings=dataclasses.replace(run.settings, resume=how))


def must_resume(run):
    return resuming(run, "must")


def rows(run, kind="train"):
    """A run's metrics without the clock."""
    return [{k: v for k, v in row.items() if k != "time"} for row in read_metrics(run.out, kind)]


def stop_at(step):
    """A `stop` that says yes after that many steps."""
    count = iter(range(1, 1000))
    return lambda: next(count) >= step


KL = "objective={preset: grpo, kl_coef: 0.1}"


def test_a_stopped_and_resumed_run_is_the_uninterrupted_run_bit_by_bit(tiny_run):
    """Params, optimizer, reference, every metric and every sample; the reference is renewed behind the stop."""
    changes = (
        KL,
        "train.reference_every=4",
        "train.minibatches=2",
        "train.epochs=2",
        "eval.every=2",
        "checkpoint.every=3",
    )
    whole = train(tiny_run(*changes, out="whole"))
    run = tiny_run(*changes, out="cut")
    first = train(run, stop=stop_at(2))  # where an evaluation is due, and no checkpoint
    assert first.step == 2
    assert first.after == {}
    second = train(must_resume(run))
    assert second.step == 6
    chex.assert_trees_all_equal(second.state, whole.state)
    reference = tiny_run(*changes, out="whole")
    for kind in ("train", "eval"):
        assert rows(run, kind) == rows(reference, kind)
        assert len(rows(run, kind)) == (6 if kind == "train" else 4)
    assert (run.out / "samples.jsonl").read_text() == (reference.out / "samples.jsonl").read_text()
    assert second.before == whole.before
    moved = whole.state.reference["embed"] - whole.state.params["embed"]
    assert 0 < float(np.abs(moved).max()) < 0.1


def test_a_killed_run_continues_from_its_last_valid_checkpoint(tiny_run):
    """Rows that the killed run wrote after that checkpoint are written again, once, and are the same."""
    run = tiny_run(out="killed")
    whole = train(run)
    expected = rows(run)
    newest = run.out / "checkpoints" / "6"
    (newest / "manifest.json").unlink()
    with (run.out / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 7, "rew')
    again = train(must_resume(run))
    chex.assert_trees_all_equal(again.state, whole.state)
    assert rows(run) == expected


def test_a_changed_byte_makes_a_checkpoint_not_exist(tiny_run, capsys):
    run = tiny_run("train.steps=4", out="flipped")
    whole = train(run)
    folder = run.out / "checkpoints" / "4" / "state"
    victim = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with Checkpoints(run.out / "checkpoints") as saved:
        assert saved.latest() == 2
        assert "does not have the digest" in saved.rejected[4]
    again = train(run)
    chex.assert_trees_all_equal(again.state, whole.state)
    assert "checkpoint 4 is not used" in capsys.readouterr().out


def test_resume_refuses_another_configuration_and_names_the_fields(tiny_run):
    train(tiny_run("train.steps=2", out="a"))
    with pytest.raises(CheckpointError, match=r"optimizer.learning_rate: .* in the checkpoint, 0.5 now"):
        train(tiny_run("train.steps=2", "optimizer.learning_rate=0.5", out="a"))
    longer = train(tiny_run("train.steps=3", "checkpoint.keep=1", out="a"))
    assert longer.step == 3


def test_a_finished_run_does_nothing_again(tiny_run):
    run = tiny_run("train.steps=2", out="c")
    first = train(run)
    files = [(run.out / name).read_text() for name in ("metrics.jsonl", "samples.jsonl")]
    second = train(run)
    assert [(run.out / name).read_text() for name in ("metrics.jsonl", "samples.jsonl")] == files
    assert (second.before, second.after, second.step) == (first.before, first.after, 2)
    chex.assert_trees_all_equal(second.state, first.state)
    with pytest.raises(CheckpointError, match=r"train.steps: 1; the checkpoint in .* is of step 2"):
        train(tiny_run("train.steps=1", out="c"))


def test_resume_must_needs_a_checkpoint(tiny_run):
    with pytest.raises(CheckpointError, match=r"resume: 'must', but .* has no valid checkpoint"):
        train(tiny_run("resume=must"))


def test_resume_never_moves_the_earlier_run_aside(tiny_run, capsys):
    run = tiny_run("train.steps=2", out="b")
    train(run)
    before = (run.out / "metrics.jsonl").read_text()
    train(resuming(run, "never"))
    aside = run.out.with_name("b.old-1")
    assert (aside / "metrics.jsonl").read_text() == before
    assert f"is now in {aside}" in capsys.readouterr().out
    assert [row["step"] for row in rows(run)] == [1, 2]


def test_what_a_run_writes(tiny_run, capsys):
    run = tiny_run("train.steps=4", "eval.every=2")
    result = train(run)
    shown = capsys.readouterr().out
    for heading in ("reward", "success", "kl", "entropy", "clip", "length", "tokens/s", "left"):
        assert heading in shown
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4]
    for row in read_metrics(run.out, "train"):
        assert row["reward_std"] > 0
        assert 0 < row["length"] <= 12
        assert row["sampler_gap"] < 1e-5
        assert row["time"]["tokens_per_second"] > 0
    assert [row["step"] for row in rows(run, "eval")] == [0, 2, 4]
    assert rows(run, "eval")[0].keys() == {"kind", "step", "greedy", "sampled", "pass@2", "pass@4", "maj@4"}
    assert result.after.keys() == result.before.keys()
    samples = [json.loads(line) for line in (run.out / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 4 * 4
    assert samples[0].keys() == {"step", "prompt", "completion", "reward"}
    assert (run.out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((run.out / "tensorboard").glob("events*"))
    assert sorted(int(p.name) for p in (run.out / "checkpoints").iterdir()) == [2, 4]


def test_a_run_compiles_in_its_first_step_and_never_again(tiny_run):
    compiled = []
    listener = lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    counts = []
    try:
        # A length of its own, so that no other test has compiled these programs.
        run = tiny_run("sampling.max_tokens=13", KL, "train.minibatches=2")
        train(run, stop=lambda: counts.append(len(compiled)))
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert counts[0] > 0
    assert counts[1:] == [counts[0]] * 5


def test_learning_moves_the_reward_up(tiny_run):
    """Digits are grades, and the policy comes to write more of them."""
    run = tiny_run("train.steps=30", "optimizer.learning_rate=0.02", "train.prompts=8", "train.micro_prompts=")
    train(run)
    reward = [row["reward/tests.run.rewards:digits"] for row in rows(run)]
    assert np.mean(reward[-5:]) > 2 * reward[0]


@pytest.mark.parametrize(
    "objective",
    [
        "{preset: deepseek_r1}",
        "{preset: grpo, kl: exact}",
        "{preset: grpo, kl_coef: 0, reward_kl_coef: 0.05}",
        "{preset: grpo, kl_coef: 0, kl: exact, reward_kl_coef: 0.05, entropy_coef: 0.01}",
        "{preset: ppo_clip, surrogate: {PpoClip: {low: 0.2, high: 0.28, dual: 10}}, aggregate: token_mean}",
    ],
)
def test_every_kind_of_objective_trains(tiny_run, objective):
    run = tiny_run(f"objective={objective}", "train.steps=3", "train.minibatches=2", "train.epochs=2")
    result = train(run)
    assert result.step == 3
    for row in rows(run):
        assert np.isfinite(row["loss"])
        assert row["grad_norm"] > 0
        assert 0 < row["ratio"] < 10
    # Without a reference there is nothing to measure, and the exact KL is no metric where it is in the reward.
    unmeasured = "ppo" in objective or ("exact" in objective and "reward_kl" in objective)
    assert ("kl" in rows(run)[0]) == (not unmeasured)


def test_process_supervision_gives_the_tokens_of_a_completion_different_advantages(tiny_run, monkeypatch):
    seen = []
    step = train.__globals__["compiled_update"]
    monkeypatch.setitem(train.__globals__, "compiled_update", lambda *a: seen.append(a[2]) or step(*a))
    run = tiny_run(
        "objective={preset: ppo_clip, advantage: ProcessNormalised}",
        "rewards=[{function: 'tests.run.rewards:thirds'}]",
        "train.steps=2",
    )
    train(run)
    batch = seen[-1]
    advantage, mask = np.asarray(batch.advantage), np.asarray(batch.mask)
    spread = [np.ptp(a[m]) for a, m in zip(advantage.reshape(-1, 12), mask.reshape(-1, 12), strict=True) if m.sum() > 5]
    assert max(spread) > 0.5


def test_process_supervision_without_step_rewards_is_refused(tiny_run):
    run = tiny_run("objective={preset: ppo_clip, advantage: ProcessNormalised}")
    with pytest.raises(ValueError, match="needs rewards of steps"):
        train(run)


def test_a_reward_that_raises_leaves_its_completions_out_and_says_so(tiny_run, capsys):
    run = tiny_run("train.steps=2", rewards=[functions.some_raise, functions.digits])
    train(run)
    assert "some_raise failed on" in capsys.readouterr().out
    only = tiny_run("train.steps=2", out="only", rewards=[functions.some_raise])
    train(only)
    assert 0 < rows(only)[0]["invalid"] < 1
    assert rows(only)[0]["reward"] == 1.0


def test_rows_of_a_file_train_with_their_columns(tiny_run, tmp_path):
    lines = [{"question": f"{i}?", "answer": str(i), "completion": f"{i}!"} for i in range(12)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seen = []

    def same(prompts, completions, answer, **_):
        seen.extend(zip(prompts, answer, strict=True))
        return [float(len(c)) for c in completions]

    run = tiny_run(
        f"data.source={tmp_path}/train.jsonl",
        f"data.test={tmp_path}/test.jsonl",
        "data.prompt=question",
        "data.train_size=",
        "data.test_size=5",
        "train.steps=2",
        rewards=[same],
    )
    assert len(run.test_data) == 5
    train(run)
    assert all(prompt == f"{answer}?" for prompt, answer in seen)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tiny_run):
    run = tiny_run("optimizer.learning_rate=1e30", "optimizer.max_grad_norm=", "train.steps=6")
    with pytest.raises(FloatingPointError, match=r"step \d: (loss|grad_norm) is (nan|inf)"):
        train(run)
    with Checkpoints(run.out / "checkpoints") as saved:
        assert saved.latest() is not None


def test_a_transformation_of_ones_own_trains_and_resumes_bit_by_bit(tiny_run):
    changes = ("optimizer.transformation=tests.run.transformations:momentum", "train.steps=4", "checkpoint.every=2")
    whole = train(tiny_run(*changes, out="whole"))
    run = tiny_run(*changes, out="cut")
    train(run, stop=stop_at(2))
    second = train(must_resume(run))
    chex.assert_trees_all_equal(second.state, whole.state)
    (trace,) = (part for part in jax.tree.leaves(whole.state.opt_state, is_leaf=_is_trace) if _is_trace(part))
    assert float(optax.tree.norm(trace.trace)) > 0


def _is_trace(part):
    return isinstance(part, optax.TraceState)


def test_another_optimizer_under_the_same_name_is_refused_in_words(tiny_run, monkeypatch):
    changes = ("optimizer.transformation=tests.run.transformations:momentum", "train.steps=2", "checkpoint.every=2")
    train(tiny_run(*changes))
    monkeypatch.setattr(transformations, "momentum", lambda schedule: optax.sgd(schedule))
    with pytest.raises(CheckpointError, match=r"of another optimizer, .*first opt_state.*trace.* there, none now"):
        train(tiny_run(*changes, "train.steps=3"))

"""What a run does at the same time, and what it computes all the same."""

import json

import jax
import numpy as np
import pytest

from grpo_jax.run import draw, measured, train
from grpo_jax.run.layouts import Layouts
from grpo_jax.run.record import read_metrics

SHARES = ("occupancy", "padding")
SECONDS = ("rollout_seconds", "reward_wait_seconds", "score_seconds", "update_seconds", "tokens_per_second")


def without_times(path):
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "time"} for row in rows]


def test_the_record_says_what_padding_and_waiting_cost(tiny_run, capsys):
    run = tiny_run()
    train(run)
    rows = read_metrics(run.out, "train")
    assert [row["step"] for row in rows] == list(range(1, 7))
    for row in rows:
        assert all(0 <= row[name] <= 1 for name in SHARES), row
        assert set(row["time"]) == set(SECONDS)
        assert row["time"]["update_seconds"] > 0
    table = capsys.readouterr().out
    assert "occupied" in table
    assert "padding" in table


def test_a_step_is_read_while_the_next_one_is_drawn(tiny_run, monkeypatch):
    """The row of step k is written after step k + 1 has begun to draw, and before a checkpoint of step k or later."""
    events = []
    begin, record = draw.Drawing.__init__, measured.Record.train

    def drawing(self, run, published, data, rows, *, step, **options):
        if step < 6:  # not of an evaluation
            events.append(("draw", int(step)))
        begin(self, run, published, data, rows, step=step, **options)

    def row(self, values):
        events.append(("row", values["step"]))
        record(self, values)

    monkeypatch.setattr(draw.Drawing, "__init__", drawing)
    monkeypatch.setattr(measured.Record, "train", row)
    train(tiny_run("checkpoint.every=100"))
    drawn = [step for kind, step in events if kind == "draw"]
    assert drawn == list(range(6))
    for step in range(5):
        assert events.index(("row", step + 1)) > events.index(("draw", step + 1))
    assert events[-1] == ("row", 6)


def test_results_do_not_depend_on_workers_or_on_waves(tiny_run):
    """Rewards in other processes, and half of the rows at once, in the order in which they end: the same run."""
    outs = []
    for name, changes in (("here", ()), ("workers", ("reward_workers=1",)), ("waves", ("sampling.rows=8",))):
        run = tiny_run(*changes, out=name)
        outs.append((train(run).state, without_times(run.out)))
    (state, rows), *others = outs
    for other, other_rows in others:
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(other.params), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)
        for row, other_row in zip(rows, other_rows, strict=True):
            assert row.get("reward") == pytest.approx(other_row.get("reward"), abs=1e-6)
            assert row.get("length") == other_row.get("length")


def test_the_next_round_is_drawn_before_the_rewards_of_the_last_are_back(tiny_run, monkeypatch):
    """A reward that takes long: the following round has begun when they are asked for, and nothing else changes."""
    events = []
    begin, judge = draw.Drawing.__init__, draw.Drawing.rewarded

    def drawing(self, *args, step, **options):
        if step < 6:  # not of an evaluation
            events.append("draw")
        begin(self, *args, step=step, **options)

    def rewarded(self):
        events.append("rewards")
        return judge(self)

    monkeypatch.setattr(draw.Drawing, "__init__", drawing)
    monkeypatch.setattr(draw.Drawing, "rewarded", rewarded)
    changes = ("train.dynamic_rounds=3", "train.steps=2", "rewards=[{function: arithmetic.format}]")
    here = tiny_run(*changes, out="here")
    train(here)
    assert events == ["draw", "rewards"] * (len(events) // 2), "without workers nothing is waited for"
    events.clear()
    monkeypatch.setattr(draw.Drawing, "judged", property(lambda self: False))
    other = tiny_run(*changes, out="other")
    train(other)
    assert events[:3] == ["draw", "draw", "rewards"]
    assert without_times(here.out) == without_times(other.out)


def test_a_run_that_is_continued_cuts_its_batches_as_it_would_have(tiny_run, monkeypatch):
    """The shapes of cells come with the checkpoint: the second half begins with those of the first."""
    seen = []
    start = Layouts.__init__

    def layouts(self, run, known=None):
        start(self, run, known)
        seen.append(dict(self.known))

    monkeypatch.setattr(Layouts, "__init__", layouts)
    whole = tiny_run("warmup.steps=0", out="whole")
    train(whole)
    half = tiny_run("warmup.steps=0", out="half")
    asked = iter([False, True])
    train(half, stop=lambda: next(asked))
    train(half)
    first, second = seen[1:]
    assert first == {}
    assert second["update"], "shapes were kept"
    assert without_times(whole.out) == without_times(half.out)


@pytest.mark.parametrize(
    "changes", [("train.minibatches=2", "train.epochs=2"), ("train.micro_prompts=2",), ("mesh.data=4", "mesh.group=2")]
)
def test_live_tokens_and_padding_train_alike(tiny_run, monkeypatch, changes):
    """The same run with every position computed, by its metrics and its weights."""
    packed = tiny_run(*changes, "train.steps=3", "warmup.steps=0", out="packed")
    state = train(packed).state
    of = Layouts.of

    def everything(self, learner, lengths, prompt_lengths, **options):
        settings = self._run.settings
        full = np.full_like(lengths, settings.sampling.max_tokens)
        return of(self, learner, full, np.full_like(prompt_lengths, settings.data.prompt_length), **options)

    monkeypatch.setattr(Layouts, "of", everything)
    padded = tiny_run(*changes, "train.steps=3", "warmup.steps=0", out="padded")
    other = train(padded).state
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for row, other_row in zip(read_metrics(packed.out, "train"), read_metrics(padded.out, "train"), strict=True):
        for name in ("loss", "kl", "grad_norm", "entropy"):
            assert row[name] == pytest.approx(other_row[name], rel=1e-3, abs=1e-6), name


def test_compiled_programs_are_kept_beside_the_run(tiny_run):
    """Where JAX has no directory for them, and only while the run lasts."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        run = tiny_run("train.steps=1")
        train(run, stop=lambda: True)
        assert any((run.out / "programs").iterdir())
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)

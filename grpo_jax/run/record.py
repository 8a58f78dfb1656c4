"""What a run leaves behind: a live table, metrics.jsonl, TensorBoard events, samples.jsonl."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from grpo_jax.types import Rollout

COLUMNS = (
    # heading, metric, format
    ("step", "step", "{:>6.0f}"),
    ("reward", "reward", "{:>8.3f}"),
    ("std", "reward_std", "{:>7.3f}"),
    ("success", "success", "{:>8.3f}"),
    ("kl", "kl", "{:>8.4f}"),
    ("entropy", "entropy", "{:>8.3f}"),
    ("clip", "clip_fraction", "{:>7.3f}"),
    ("length", "length", "{:>7.1f}"),
    ("occupied", "occupancy", "{:>8.2f}"),
    ("padding", "padding", "{:>7.2f}"),
    ("tokens/s", "tokens_per_second", "{:>9.0f}"),
    ("left", "left", "{:>7}"),
)
"""The live table. `kl` is from the reference where there is one, else from the policy that sampled; `occupied` is the
share of live tokens in what the rollout computed, `padding` that of padding in the update."""


class Record:
    """The files of a run and the lines on its screen. A context manager.

    Args:
      out: the run's directory.
      step: the step the run continues from; later rows of an earlier, killed run are dropped.
      steps: steps of the whole run, for the time that is left.
    """

    def __init__(self, out: Path, *, step: int, steps: int) -> None:
        self._steps, self._first = steps, step
        self._started: float | None = None
        self._lines = 0
        out.mkdir(parents=True, exist_ok=True)
        self._metrics = _reopen(out / "metrics.jsonl", step)
        self._samples = _reopen(out / "samples.jsonl", step)
        self._events = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1, flush_secs=10)

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        self._samples.close()
        self._events.close()

    def say(self, text: str) -> None:
        """Prints a line."""
        print(text, flush=True)

    def warm_up(self, step: int, steps: int, metrics: Mapping[str, Any]) -> None:
        """Notes a supervised update; prints every tenth part of the phase."""
        self._events.add_scalar("warmup/loss", float(metrics["loss"]), step)
        if step % max(steps // 10, 1) == 0 or step == steps:
            self.say(f"warm-up {step:>5}/{steps}   loss {float(metrics['loss']):.4f}")

    def train(self, row: Mapping[str, Any]) -> None:
        """Notes a step and prints its line of the table."""
        self._write("train", row)
        now = time.monotonic()
        done = row["step"] - self._first
        left = "" if self._started is None else _clock((now - self._started) / (done - 1) * (self._steps - row["step"]))
        self._started = self._started or now
        if self._lines % 20 == 0:
            self.say(" ".join(f"{title:>{_width(form)}}" for title, _, form in COLUMNS))
        self._lines += 1
        shown = {**row, "kl": row.get("kl", row["approx_kl"]), "left": left, **row["time"]}
        self.say(" ".join(form.format(shown[name]) for _, name, form in COLUMNS))

    def evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Notes held-out accuracy."""
        self._write("eval", {"step": step, **scores})
        self.say(f"held out at step {step}: " + "  ".join(f"{k} {v:.3f}" for k, v in scores.items()))

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Writes completions with their rewards."""
        for row in rows:
            self._samples.write(json.dumps({"step": step, **row}) + "\n")
        self._samples.flush()

    def _write(self, kind: str, row: Mapping[str, Any]) -> None:
        self._metrics.write(json.dumps({"kind": kind, **row}) + "\n")
        self._metrics.flush()
        flat = {k: v for k, v in row.items() if k not in ("step", "time")} | row.get("time", {})
        for name, value in flat.items():
            self._events.add_scalar(f"{kind}/{name}", value, row["step"])


def read_metrics(out: Path, kind: str) -> list[dict[str, Any]]:
    """Returns the rows of one kind, `train` or `eval`, of a run's metrics.jsonl."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def completion_statistics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Returns the mean length in tokens and the share of completions that the limit cut."""
    mask, ended = (np.stack([getattr(rollout, name) for rollout in rollouts]) for name in ("mask", "ended"))
    return {"length": float(mask.sum(-1).mean()), "truncated": float(1 - ended.mean())}


def _reopen(path: Path, step: int) -> Any:
    """Returns the file opened to append, cut after the rows up to `step`."""
    kept = []
    if path.exists():
        for line in path.read_text().splitlines(keepends=True):
            if not line.endswith("\n") or json.loads(line)["step"] > step:
                break
            kept.append(line)
    path.write_text("".join(kept))
    return path.open("a")


def _width(form: str) -> int:
    return len(form.format("" if "f" not in form else 0))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"

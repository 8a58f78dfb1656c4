"""What a step measured: it stays on the device until the next step is on its way, and then becomes a row."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from grpo_jax.run.draw import Drawn
from grpo_jax.run.group import Group, correct, rewards_differ
from grpo_jax.run.record import Record, completion_statistics
from grpo_jax.run.run import Run
from grpo_jax.types import TokenBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A step whose update is on its way."""

    step: int
    drawn: Drawn
    padding: float
    """The share of padding in what the update computes."""
    begun: float
    """When the step began; seconds of `time.monotonic`."""
    ended: float
    """When its completions and their rewards were there."""
    batch: TokenBatch
    metrics: dict[str, jax.Array]


class Unread:
    """Holds what the last step measured until it is read."""

    def __init__(self, run: Run, record: Record) -> None:
        self._run, self._record = run, record
        self._last: Measured | None = None
        self._free = time.monotonic()
        # Its thread looks at the clock when the device has come so far; the loop may be busy then.
        self._watch = concurrent.futures.ThreadPoolExecutor(1)
        self._done: concurrent.futures.Future[tuple[float, float]] | None = None

    def __enter__(self) -> Unread:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.read()
        finally:
            self._watch.shutdown()

    def put(self, measured: Measured) -> None:
        """Keeps a step's measurements; those of the step before have been read."""
        self._last = measured
        self._done = self._watch.submit(_when_done, measured.batch, measured.metrics)

    def read(self) -> bool:
        """Waits for the last step and records it. Returns whether there was one.

        Raises:
          FloatingPointError: its loss or gradient is not finite.
        """
        last, self._last = self._last, None
        if last is None:
            return False
        scored, learnt = self._done.result()
        metrics = {name: float(value) for name, value in last.metrics.items()}
        # The step may have begun while the device was still busy with the one before.
        times = _times(last, max(last.begun, self._free), scored, learnt)
        self._free = learnt
        _refuse_nonfinite(self._run, last.step, metrics)
        self._record.samples(last.step, _samples(last.drawn.groups[0]))
        settings = self._run.settings.train
        row = {"step": last.step, "rounds": len(last.drawn.every) // settings.prompts}
        row |= _host_metrics(last.drawn.groups) | metrics
        row["learning_rate"] = float(self._run.schedule(last.step * settings.updates - 1))
        row |= {"occupancy": last.drawn.occupancy, "padding": last.padding, "time": times}
        self._record.train(row)
        _say_failures(self._record, last.drawn.every)
        return True


def _when_done(batch: TokenBatch, metrics: dict[str, jax.Array]) -> tuple[float, float]:
    """Returns when the device had scored a batch, and when it had learnt from it."""
    jax.block_until_ready(batch)
    scored = time.monotonic()
    jax.block_until_ready(metrics)
    return scored, time.monotonic()


def _times(measured: Measured, begun: float, scored: float, learnt: float) -> dict[str, float]:
    """Returns the seconds of each part, and the live tokens per second of all of them."""
    tokens = sum(int(group.rollout.mask.sum()) for group in measured.drawn.groups)
    return {
        "rollout_seconds": measured.ended - begun - measured.drawn.waited,
        "reward_wait_seconds": measured.drawn.waited,
        "score_seconds": scored - measured.ended,
        "update_seconds": learnt - scored,
        "tokens_per_second": tokens / (learnt - begun),
    }


def _host_metrics(groups: list[Group]) -> dict[str, float]:
    scores = [group.scores for group in groups]
    reward, valid = (np.concatenate([getattr(each, name) for each in scores]) for name in ("total", "valid"))
    applied = reward[valid]
    terms = {name: np.concatenate([each.each[name] for each in scores]) for name in scores[0].each}
    return {
        "reward": float(applied.mean()) if applied.size else 0.0,
        "reward_std": float(applied.std()) if applied.size else 0.0,
        "success": float(correct(groups).mean()),
        **{f"reward/{name}": float(np.nanmean(term)) for name, term in terms.items() if np.isfinite(term).any()},
        "invalid": float(1 - valid.mean()),
        # Groups whose rewards are all equal have no gradient.
        "flat_groups": float(np.mean([not rewards_differ(group) for group in groups])),
        **completion_statistics([group.rollout for group in groups]),
    }


def _samples(group: Group) -> list[dict[str, Any]]:
    """Returns the completions of a group, as text."""
    each = zip(group.completions, group.scores.total, strict=True)
    return [{"prompt": group.prompt, "completion": text, "reward": float(reward)} for text, reward in each]


def _say_failures(record: Record, groups: list[Group]) -> None:
    """Says of each reward that failed how often it did, with its first traceback."""
    scores = [group.scores for group in groups]
    first = {name: text for each in reversed(scores) for name, text in each.errors.items()}
    for name, text in first.items():
        count = sum(each.failures[name] for each in scores)
        record.say(f"reward {name} failed on {count} completions, which are left out: {text}")


def _refuse_nonfinite(run: Run, step: int, metrics: dict[str, float]) -> None:
    bad = [name for name in ("loss", "grad_norm") if not np.isfinite(metrics[name])]
    if bad:
        raise FloatingPointError(
            f"step {step}: {bad[0]} is {metrics[bad[0]]}; the checkpoints in {run.out / 'checkpoints'} are from before "
            "it. Lower optimizer.learning_rate or optimizer.max_grad_norm and continue"
        )

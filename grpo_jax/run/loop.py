"""The loop: draw, reward, learn, record, save. Everything it does at a step is a function of (seed, step, state)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from grpo_jax.learn.state import TrainState, policy_params
from grpo_jax.learn.step import minibatch_order
from grpo_jax.models.decoder import Params
from grpo_jax.rewards import Rewards
from grpo_jax.run.checkpoint import Checkpoints
from grpo_jax.run.compiled import (
    compiled_batch,
    compiled_publish,
    compiled_reference,
    compiled_state,
    compiled_update,
    first_state,
)
from grpo_jax.run.curves import draw_curves
from grpo_jax.run.draw import draw_step
from grpo_jax.run.evaluation import evaluate
from grpo_jax.run.group import Group, correct, place, place_grades, rewards_differ
from grpo_jax.run.record import Record, completion_statistics
from grpo_jax.run.resume import Start, find_start, restore_run, save_run
from grpo_jax.run.run import Run
from grpo_jax.run.warmup import warm_up


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a run ends with."""

    state: TrainState
    step: int
    before: dict[str, float]
    """Held-out accuracy before the first policy update; empty without held-out problems."""
    after: dict[str, float]
    """The same after the last; empty if the run was stopped early."""


def train(run: Run, *, stop: Callable[[], bool] = lambda: False) -> Result:
    """Returns the result of a run, begun or continued.

    Args:
      run: everything about it.
      stop: asked after every step; True saves a checkpoint and returns.

    Raises:
      CheckpointError: `resume` cannot be followed.
      FloatingPointError: a loss or gradient is not finite; the last checkpoint is from before that step.
    """
    settings = run.settings
    with (
        jax.set_mesh(run.mesh),
        Rewards(run.rewards, workers=settings.reward_workers, deadline=settings.reward_deadline) as rewards,
        Checkpoints(run.out / "checkpoints", keep=settings.checkpoint.keep) as saved,
    ):
        rewards.check_columns(run.train_data.columns([0]).keys())
        start = find_start(run, saved)
        with Record(run.out, step=start.step, steps=settings.train.steps) as record:
            for line in (*run.notes, *start.notes):
                record.say(line)
            state, start = _begin(run, rewards, saved, record, start)
            state, done, after = _steps(run, rewards, saved, record, state, start, stop)
        draw_curves(run.out)
    return Result(state=state, step=done, before=start.before, after=after)


def _begin(run: Run, rewards: Rewards, saved: Checkpoints, record: Record, start: Start) -> tuple[TrainState, Start]:
    """Returns the state to continue from, warmed up if it is new, and the start with the accuracy before step 1."""
    if start.checkpoint is not None:
        return restore_run(run, saved, start), start
    if run.warmup_learner is not None:
        state = warm_up(run, first_state(run, run.warmup_learner), record)
        state = compiled_state(run.learner, state.params, run.settings.seed)
    else:
        state = first_state(run, run.learner)
    start = dataclasses.replace(start, before=_evaluate(run, rewards, record, state, 0))
    save_run(run, saved, 0, state, {"cursor": 0, "before": start.before, "after": {}})
    return state, start


def _steps(
    run: Run,
    rewards: Rewards,
    saved: Checkpoints,
    record: Record,
    state: TrainState,
    start: Start,
    stop: Callable[[], bool],
) -> tuple[TrainState, int, dict[str, float]]:
    """Returns the state, the step and the final accuracy after the last step, or after that at which `stop` said so.

    Everything a step records is on disk before its checkpoint is, so a continued run misses nothing of it.
    """
    cursor, after = start.cursor, start.after
    train, every = run.settings.train, run.settings.eval.every
    for step in range(start.step, train.steps):
        state, row = _step(run, rewards, record, state, step, cursor)
        cursor += train.prompts * row["rounds"]
        record.train(row)
        saved.poll()
        done = step + 1
        last, stopped = done == train.steps, stop()
        if train.reference_every and done % train.reference_every == 0 and state.reference is not None:
            state = compiled_reference(state, train.reference_mix)
        if last or (every and done % every == 0):
            scores = _evaluate(run, rewards, record, state, done)
            after = scores if last else {}
        if done % run.settings.checkpoint.every == 0 or last or stopped:
            save_run(run, saved, done, state, {"cursor": cursor, "before": start.before, "after": after})
        if stopped:
            return state, done, after
    return state, train.steps, after


def _step(
    run: Run, rewards: Rewards, record: Record, state: TrainState, step: int, cursor: int
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state after one step, and its row of metrics."""
    clock, updates = [time.monotonic()], run.settings.train
    groups, drawn, seconds = draw_step(run, rewards, _published(run, state), step=step, cursor=cursor)
    clock += [time.monotonic() - seconds, time.monotonic()]
    grades = place_grades(run, groups)
    batch = jax.block_until_ready(compiled_batch(run.learner, state, *place(run, groups), grades))
    clock.append(time.monotonic())
    order = minibatch_order(
        run.settings.seed, step, prompts=updates.prompts, minibatches=updates.minibatches, epochs=updates.epochs
    )
    state, metrics = compiled_update(run.learner, state, batch, order)
    metrics = {name: float(value) for name, value in metrics.items()}
    clock.append(time.monotonic())
    _refuse_nonfinite(run, step + 1, metrics)
    record.samples(step + 1, _samples(groups[0]))
    row = {"step": step + 1, "rounds": len(drawn) // updates.prompts, **_host_metrics(groups), **metrics}
    row["learning_rate"] = float(run.schedule((step + 1) * updates.updates - 1))
    row["time"] = _times(clock, groups)
    _say_failures(record, drawn)
    return state, row


def _published(run: Run, state: TrainState) -> Params:
    return compiled_publish(run.learner.model, policy_params(run.learner, state))


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


def _times(clock: list[float], groups: list[Group]) -> dict[str, float]:
    names = ("rollout_seconds", "reward_seconds", "score_seconds", "update_seconds")
    spans = dict(zip(names, np.diff(clock).tolist(), strict=True))
    tokens = sum(int(group.rollout.mask.sum()) for group in groups)
    return {**spans, "tokens_per_second": float(tokens / (clock[-1] - clock[0]))}


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


def _evaluate(run: Run, rewards: Rewards, record: Record, state: TrainState, step: int) -> dict[str, float]:
    if run.test_data is None:
        return {}
    scores = evaluate(run, rewards, _published(run, state))
    record.evaluation(step, scores)
    return scores


def _refuse_nonfinite(run: Run, step: int, metrics: dict[str, float]) -> None:
    bad = [name for name in ("loss", "grad_norm") if not np.isfinite(metrics[name])]
    if bad:
        raise FloatingPointError(
            f"step {step}: {bad[0]} is {metrics[bad[0]]}; the checkpoints in {run.out / 'checkpoints'} are from before "
            "it. Lower optimizer.learning_rate or optimizer.max_grad_norm and continue"
        )

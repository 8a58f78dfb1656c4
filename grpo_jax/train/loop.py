"""The loop: draw, reward, learn, record, save. Everything it does at a step is a function of (seed, step, state)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from grpo_jax.models.decoder import Params
from grpo_jax.rewards import Rewards, Scores
from grpo_jax.train.checkpoint import Checkpoints
from grpo_jax.train.curves import draw_curves
from grpo_jax.train.evaluate import evaluate
from grpo_jax.train.gather import gather, teaches
from grpo_jax.train.judge import solved
from grpo_jax.train.programs import (
    Drawn,
    first_state,
    make_experience,
    make_published,
    make_reference,
    make_state,
    make_step,
)
from grpo_jax.train.record import Record, completion_statistics
from grpo_jax.train.resume import Start, find_start, restore, save
from grpo_jax.train.run import Run
from grpo_jax.train.state import TrainState, policy_params
from grpo_jax.train.step import minibatch_order
from grpo_jax.train.warmup import warm_up


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
    reward_runner = Rewards(run.rewards, workers=run.reward_workers, deadline=run.reward_deadline)
    with jax.set_mesh(run.mesh), reward_runner as rewards, Checkpoints(run.out / "checkpoints", keep=run.keep) as saved:
        rewards.check_columns(run.train_data.columns([0]).keys())
        start = find_start(run, saved)
        with Record(run.out, step=start.step, steps=run.steps) as record:
            for line in (*run.notes, *start.notes):
                record.say(line)
            state, start = _begin(run, rewards, saved, record, start)
            state, done, after = _steps(run, rewards, saved, record, state, start, stop)
        draw_curves(run.out)
    return Result(state=state, step=done, before=start.before, after=after)


def _begin(run: Run, rewards: Rewards, saved: Checkpoints, record: Record, start: Start) -> tuple[TrainState, Start]:
    """Returns the state to continue from, warmed up if it is new, and the start with the accuracy before step 1."""
    if start.checkpoint is not None:
        return restore(run, saved, start), start
    if run.warm_up is not None and run.warm_up.steps:
        state = warm_up(run, first_state(run, run.warm_up.learner), record)
        state = make_state(run.learner, state.params, run.seed)
    else:
        state = first_state(run, run.learner)
    start = dataclasses.replace(start, before=_evaluate(run, rewards, record, state, 0))
    save(run, saved, 0, state, {"cursor": 0, "before": start.before, "after": {}})
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
    for step in range(start.step, run.steps):
        state, row = _step(run, rewards, record, state, step, cursor)
        cursor += run.prompts * row["rounds"]
        record.train(row)
        saved.poll()
        done = step + 1
        last, stopped, every = done == run.steps, stop(), run.evaluation.every
        if run.reference_every and done % run.reference_every == 0 and state.reference is not None:
            state = make_reference(state, run.reference_mix)
        if last or (every and done % every == 0):
            scores = _evaluate(run, rewards, record, state, done)
            after = scores if last else {}
        if done % run.checkpoint_every == 0 or last or stopped:
            save(run, saved, done, state, {"cursor": cursor, "before": start.before, "after": after})
        if stopped:
            return state, done, after
    return state, run.steps, after


def _step(
    run: Run, rewards: Rewards, record: Record, state: TrainState, step: int, cursor: int
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state after one step, and its row of metrics."""
    clock = [time.monotonic()]
    gathered = gather(run, rewards, _published(run, state), step=step, cursor=cursor)
    drawn, scores = gathered.drawn, gathered.scores
    clock += [time.monotonic() - gathered.reward_seconds, time.monotonic()]
    batch = jax.block_until_ready(make_experience(run.learner, state, drawn.prompt, drawn.rollout, gathered.rewarded))
    clock.append(time.monotonic())
    order = minibatch_order(
        run.seed, step, prompts=run.prompts, minibatches=run.learner.minibatches, epochs=run.learner.epochs
    )
    state, metrics = make_step(run.learner, state, batch, order)
    metrics = {name: float(value) for name, value in metrics.items()}
    clock.append(time.monotonic())
    _refuse_nonfinite(run, step + 1, metrics)
    record.samples(step + 1, _samples(drawn, scores))
    row = {"step": step + 1, "rounds": gathered.rounds, **_host_metrics(run, drawn, scores), **metrics}
    row["learning_rate"] = float(run.schedule((step + 1) * run.learner.updates - 1))
    row["time"] = _times(clock, drawn)
    for name, text in scores.errors.items():
        record.say(f"reward {name} failed on {scores.failures[name]} completions, which are left out: {text}")
    return state, row


def _published(run: Run, state: TrainState) -> Params:
    return make_published(run.learner.model, policy_params(run.learner, state))


def _host_metrics(run: Run, drawn: Drawn, scores: Scores) -> dict[str, float]:
    reward, valid = scores.total, scores.valid
    applied = reward[valid]
    return {
        "reward": float(applied.mean()) if applied.size else 0.0,
        "reward_std": float(applied.std()) if applied.size else 0.0,
        "success": float(solved(scores).mean()),
        **{
            f"reward/{name}": float(np.nanmean(values))
            for name, values in scores.each.items()
            if np.isfinite(values).any()
        },
        "invalid": float(1 - valid.mean()),
        # Groups without a difference teach nothing.
        "flat_groups": float(np.mean(~teaches(scores, run.rolling.group))),
        **completion_statistics(drawn.mask, drawn.ended),
    }


def _times(clock: list[float], drawn: Drawn) -> dict[str, float]:
    names = ("rollout_seconds", "reward_seconds", "score_seconds", "update_seconds")
    spans = dict(zip(names, np.diff(clock).tolist(), strict=True))
    return {**spans, "tokens_per_second": float(drawn.mask.sum() / (clock[-1] - clock[0]))}


def _samples(drawn: Drawn, scores: Scores) -> list[dict[str, Any]]:
    """Returns the first group of a step, as text."""
    group = drawn.tokens.shape[1]
    return [
        {"prompt": drawn.prompts[0], "completion": drawn.completions[i], "reward": float(scores.total[i])}
        for i in range(group)
    ]


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

"""The loop: draw, reward, learn, record, save. Everything it does at a step is a function of (seed, step, state)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import jax

from grpo_jax.learn.state import TrainState, policy_params
from grpo_jax.learn.step import minibatch_order
from grpo_jax.mesh.compile import programs_in
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
from grpo_jax.run.group import place, place_grades
from grpo_jax.run.layouts import Layouts, step_layouts
from grpo_jax.run.measured import Measured, Unread
from grpo_jax.run.record import Record
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
        programs_in(run.out / "programs"),
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

    What a step measured is read while the next one's completions are being drawn. Everything that it records is on
    disk before its checkpoint is, so a continued run misses nothing of it.
    """
    cursor, after, layouts = start.cursor, start.after, Layouts(run, start.shapes)
    train, every = run.settings.train, run.settings.eval.every
    with Unread(run, record) as last:
        for step in range(start.step, train.steps):
            state, rounds = _step(run, rewards, layouts, last, state, step, cursor)
            cursor += train.prompts * rounds
            saved.poll()
            done = step + 1
            final, stopped = done == train.steps, stop()
            if train.reference_every and done % train.reference_every == 0 and state.reference is not None:
                state = compiled_reference(state, train.reference_mix)
            if final or (every and done % every == 0):
                last.read()
                scores = _evaluate(run, rewards, record, state, done)
                after = scores if final else {}
            if done % run.settings.checkpoint.every == 0 or final or stopped:
                last.read()
                meta = {"cursor": cursor, "before": start.before, "after": after, "shapes": layouts.known}
                save_run(run, saved, done, state, meta)
            if stopped:
                return state, done, after
    return state, train.steps, after


def _step(
    run: Run, rewards: Rewards, layouts: Layouts, last: Unread, state: TrainState, step: int, cursor: int
) -> tuple[TrainState, int]:
    """Returns the state after one step, and how many rounds of prompts it drew.

    Nothing here waits for the update: it is on its way when this returns, and `last` knows what to read of it.
    """
    learner, updates = run.learner, run.settings.train
    begun = time.monotonic()
    drawn = draw_step(run, rewards, _published(run, state), step=step, cursor=cursor, meanwhile=last.read)
    ended = time.monotonic()
    order = minibatch_order(
        run.settings.seed, step, prompts=updates.prompts, minibatches=updates.minibatches, epochs=updates.epochs
    )
    scored, learnt, padding = step_layouts(layouts, learner, drawn.groups, order)
    batch = compiled_batch(learner, state, *place(run, drawn.groups), place_grades(run, drawn.groups), scored)
    state, metrics = compiled_update(learner, state, batch, order, learnt)
    last.put(
        Measured(step=step + 1, drawn=drawn, padding=padding, begun=begun, ended=ended, batch=batch, metrics=metrics)
    )
    return state, len(drawn.every) // updates.prompts


def _published(run: Run, state: TrainState) -> Params:
    return compiled_publish(run.learner.model, policy_params(run.learner, state))


def _evaluate(run: Run, rewards: Rewards, record: Record, state: TrainState, step: int) -> dict[str, float]:
    if run.test_data is None:
        return {}
    scores = evaluate(run, rewards, _published(run, state))
    record.evaluation(step, scores)
    return scores

"""Saved and restored: the state of training, and where a run begins, at step 0 or at its last valid checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from grpo_jax.learn.learner import Learner
from grpo_jax.learn.state import TrainState, abstract_state
from grpo_jax.models.weights.source import ModelSource
from grpo_jax.run.base import fingerprint, read_base
from grpo_jax.run.checkpoint import CheckpointError, Checkpoints
from grpo_jax.run.run import Run

FREE = ("out", "resume", "mesh", "data.url", "train.steps", "eval", "checkpoint", "reward_workers", "reward_deadline")
"""Settings that may differ between a run and its continuation."""


def save(
    saved: Checkpoints,
    step: int,
    state: TrainState,
    meta: dict[str, Any] | None = None,
    *,
    leave_out_base: bool = False,
) -> None:
    """Begins to write a state, with whatever JSON can say beside it; leaving `saved` waits for what is being written.

    Args:
      saved: `Checkpoints(directory)`, in force as a context manager.
      step: the checkpoint's number.
      leave_out_base: the weights under adapters are those of a model directory, and only their fingerprint is kept.
    """
    base = None
    if leave_out_base and state.base is not None:
        base, state = fingerprint(state.base), dataclasses.replace(state, base=None)
    saved.save(step, state, {**(meta or {}), "base": base})


def restore(
    saved: Checkpoints,
    learner: Learner,
    mesh: jax.sharding.Mesh,
    step: int | None = None,
    *,
    source: ModelSource | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Returns a saved state, on a mesh that need not be the one that it was saved from, and what was said beside it.

    Args:
      learner: says what the state consists of.
      step: the checkpoint's number; None takes the newest valid one.
      source: where weights under adapters are read that the checkpoint leaves out.

    Raises:
      CheckpointError: there is no valid checkpoint, it is of another learner (optimizer, model, objective), or the
        weights that it leaves out have changed.
    """
    step = saved.latest() if step is None else step
    if step is None:
        raise CheckpointError(f"{saved.directory} has no valid checkpoint")
    meta, abstract = saved.meta(step), abstract_state(learner, mesh)
    base = meta.get("base")
    if base is None:
        return saved.restore(step, abstract), meta
    state = saved.restore(step, dataclasses.replace(abstract, base=None))
    return dataclasses.replace(state, base=read_base(source, learner.model, mesh, base)), meta


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """The point a run begins at."""

    step: int = 0
    cursor: int = 0
    checkpoint: int | None = None
    before: dict[str, float] = dataclasses.field(default_factory=dict)
    after: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of a run that is finished."""
    shapes: dict[str, list[list[int]]] = dataclasses.field(default_factory=dict)
    """The shapes of cells that batches were packed into, by what for."""
    notes: tuple[str, ...] = ()


def find_start(run: Run, saved: Checkpoints) -> Start:
    """Returns where the run begins.

    `resume='never'` with an earlier run in `out` moves that one aside; nothing is lost.

    Raises:
      CheckpointError: `resume='must'` without a checkpoint, or a checkpoint of another configuration or data set.
    """
    if run.settings.resume == "never":
        return Start(notes=_move_aside(run))
    step = saved.latest()
    notes = tuple(f"checkpoint {number} is not used: {reason}" for number, reason in saved.rejected.items())
    if step is None:
        if run.settings.resume == "must":
            raise CheckpointError(
                f"resume: 'must', but {saved.directory} has no valid checkpoint"
                + "".join(f"\n  {note}" for note in notes)
                + "\nSet resume=auto to start at step 0"
            )
        return Start(notes=notes)
    meta = saved.meta(step)
    _compare(run, meta, saved)
    steps = run.settings.train.steps
    if step > steps:
        raise CheckpointError(
            f"train.steps: {steps}; the checkpoint in {saved.directory} is of step {step}; raise it, or set "
            "resume=never to start anew (the old run is moved aside)"
        )
    notes += (f"continuing from step {step} of {steps} ({saved.directory / str(step)})",)
    after = meta["after"] if step == steps else {}
    return Start(
        step=step,
        cursor=meta["cursor"],
        checkpoint=step,
        before=meta["before"],
        after=after,
        shapes=meta.get("shapes", {}),
        notes=notes,
    )


def save_run(run: Run, saved: Checkpoints, step: int, state: TrainState, meta: dict[str, Any]) -> None:
    """Begins to write a checkpoint of a run."""
    meta = {**meta, "config": dataclasses.asdict(run.settings), "data": run.train_data.fingerprint()}
    unchanged = run.model_source is not None and run.warmup_learner is None
    save(saved, step, state, meta, leave_out_base=unchanged)


def restore_run(run: Run, saved: Checkpoints, start: Start) -> TrainState:
    """Returns the state of the checkpoint that `start` names, on the run's mesh.

    Raises:
      CheckpointError: the weights that the run began from have changed.
    """
    return restore(saved, run.learner, run.mesh, start.checkpoint, source=run.model_source)[0]


def _compare(run: Run, meta: dict[str, Any], saved: Checkpoints) -> None:
    try:
        # Fields that came after the checkpoint have their defaults.
        stored = type(run.settings)(**meta["config"])
    except ValueError as error:
        raise CheckpointError(f"{saved.directory} holds a run of another version of grpo_jax: {error}") from error
    changed = [
        f"{path}: {was!r} in the checkpoint, {now!r} now"
        for path, was, now in differences(dataclasses.asdict(stored), dataclasses.asdict(run.settings))
        if not any(path == free or path.startswith(f"{free}.") for free in FREE)
    ]
    if meta["data"] != run.train_data.fingerprint():
        changed.append("data: the training rows are not those of the checkpoint")
    if changed:
        raise CheckpointError(
            f"{saved.directory} holds a run with another configuration:\n  "
            + "\n  ".join(changed)
            + "\nChange it back, set resume=never to start anew (the old run is moved aside), or set another out="
        )


def differences(was: Any, now: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Returns (dotted path, old value, new value) for every leaf that two nested mappings do not share.

    A field that one of them lacks is like one that is null or empty.

    >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    [('a.c', 2, 3)]
    """
    if isinstance(was, dict) and isinstance(now, dict):
        names = list(dict.fromkeys([*was, *now]))
        inside = (differences(was.get(n), now.get(n), f"{path}.{n}" if path else n) for n in names)
        return [found for part in inside for found in part]
    return [] if was == now or (was in (None, {}) and now in (None, {})) else [(path, was, now)]


def _move_aside(run: Run) -> tuple[str, ...]:
    if not run.out.exists() or not any(run.out.iterdir()):
        return ()
    number = 1
    while (aside := run.out.with_name(f"{run.out.name}.old-{number}")).exists():
        number += 1
    run.out.rename(aside)
    return (f"the earlier run in {run.out} is now in {aside}",)

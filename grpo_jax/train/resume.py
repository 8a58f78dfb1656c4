"""Where a run begins: at step 0, or at its last valid checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any

from grpo_jax.train.base import read_base, stored
from grpo_jax.train.checkpoint import CheckpointError, Checkpoints
from grpo_jax.train.run import Run
from grpo_jax.train.state import TrainState, abstract_state

FREE = ("out", "resume", "mesh", "data.url", "train.steps", "eval", "checkpoint", "reward_workers", "reward_deadline")
"""Settings that may differ between a run and its continuation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """The point a run begins at."""

    step: int = 0
    cursor: int = 0
    checkpoint: int | None = None
    before: dict[str, float] = dataclasses.field(default_factory=dict)
    after: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of a run that is finished."""
    notes: tuple[str, ...] = ()


def find_start(run: Run, saved: Checkpoints) -> Start:
    """Returns where the run begins.

    `resume='never'` with an earlier run in `out` moves that one aside; nothing is lost.

    Raises:
      CheckpointError: `resume='must'` without a checkpoint, or a checkpoint of another configuration or data set.
    """
    if run.resume == "never":
        return Start(notes=_move_aside(run))
    step = saved.latest()
    notes = tuple(f"checkpoint {number} is not used: {reason}" for number, reason in saved.rejected.items())
    if step is None:
        if run.resume == "must":
            raise CheckpointError(
                f"resume: 'must', but {saved.directory} has no valid checkpoint"
                + "".join(f"\n  {note}" for note in notes)
                + "\nSet resume=auto to start at step 0"
            )
        return Start(notes=notes)
    meta = saved.meta(step)
    _compare(run, meta, saved)
    if step > run.steps:
        raise CheckpointError(
            f"train.steps: {run.steps}; the checkpoint in {saved.directory} is of step {step}; raise it, or set "
            "resume=never to start anew (the old run is moved aside)"
        )
    notes += (f"continuing from step {step} of {run.steps} ({saved.directory / str(step)})",)
    after = meta["after"] if step == run.steps else {}
    return Start(step=step, cursor=meta["cursor"], checkpoint=step, before=meta["before"], after=after, notes=notes)


def save(run: Run, saved: Checkpoints, step: int, state: TrainState, meta: dict[str, Any]) -> None:
    """Begins to write a checkpoint."""
    state, base = stored(run, state)
    meta = {**meta, "base": base, "config": run.description, "data": run.train_data.fingerprint()}
    saved.save(step, state, meta)


def restore(run: Run, saved: Checkpoints, start: Start) -> TrainState:
    """Returns the state of the checkpoint that `start` names, on the run's mesh.

    Raises:
      CheckpointError: the weights that the run began from have changed.
    """
    base = saved.meta(start.checkpoint).get("base")
    abstract = abstract_state(run.learner, run.mesh)
    if base is None:
        return saved.restore(start.checkpoint, abstract)
    state = saved.restore(start.checkpoint, dataclasses.replace(abstract, base=None))
    return dataclasses.replace(state, base=read_base(run.source, run.learner.model, run.mesh, base))


def _compare(run: Run, meta: dict[str, Any], saved: Checkpoints) -> None:
    changed = [
        f"{path}: {was!r} in the checkpoint, {now!r} now"
        for path, was, now in differences(meta["config"], run.description)
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

    A field that one of them lacks is like one that is null or empty: so are those that came after a checkpoint.

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

"""`grpo-jax export`: a checkpoint as a model directory that transformers reads.

A checkpoint holds the configuration of its run, so neither the YAML file nor the data is needed; where the run began
from a model, that one is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from grpo_jax.cli.error import UserError
from grpo_jax.config import Config, dump
from grpo_jax.config.load import from_dict
from grpo_jax.config.model import Model, build_mesh, build_model
from grpo_jax.config.override import override
from grpo_jax.models import merge_adapters
from grpo_jax.models.weights import Card, export
from grpo_jax.models.weights.adapter import save_adapter
from grpo_jax.models.weights.write import check_new
from grpo_jax.run import CheckpointError, Checkpoints
from grpo_jax.run.policy import restore_adapters, restore_policy
from grpo_jax.run.record import read_metrics

TRAINING = ("reward", "success", "kl", "entropy", "length")
"""Figures of the last step that a card shows beside those of evaluation."""

CHANGES = ("mesh.", "model.path=")
"""What a configuration says of the place where it runs. All else belongs to the checkpoint."""


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status; prints where the model is."""
    if "=" in arguments.directory:
        raise UserError(f"DIR: {arguments.directory!r} is a change; the order is CHECKPOINT DIR mesh.fsdp=1")
    if fixed := [word for word in arguments.overrides if not word.startswith(CHANGES)]:
        raise UserError(f"{fixed[0]!r}: the configuration is the checkpoint's; mesh.* and model.path can be changed")
    try:
        folder, step = find_checkpoint(Path(arguments.checkpoint))
        with Checkpoints(folder) as saved:
            stored = saved.meta(step)["config"]
            config = _changed(stored, arguments.overrides)
            if arguments.adapter:
                _check_adapters(config)
            check_new(arguments.directory)
            mesh = build_mesh(config)
            model = build_model(config)
            with jax.set_mesh(mesh):
                _write(saved, step, mesh, model, stored, arguments)
    except (CheckpointError, ValueError, OSError) as error:
        raise UserError(str(error)) from error
    print(f"{folder / str(step)}: {arguments.directory}")
    return 0


def find_checkpoint(path: Path) -> tuple[Path, int]:
    """Returns the directory of the checkpoints, and the step: the newest of a run, or the one that `path` is.

    Raises:
      CheckpointError: there is none, or it is damaged.
    """
    if (path / "checkpoints").is_dir():
        saved = Checkpoints(path / "checkpoints")
        step = saved.latest()
        if step is not None:
            return saved.directory, step
        reasons = "".join(f"\n  {reason}" for reason in saved.rejected.values())
        raise CheckpointError(f"CHECKPOINT: {saved.directory} has no valid checkpoint{reasons}")
    if not (path.is_dir() and path.name.isdecimal()):
        raise CheckpointError(
            f"CHECKPOINT: {path} is neither a run's directory, such as outputs/gsm8k, nor one of its checkpoints, such "
            "as outputs/gsm8k/checkpoints/20"
        )
    saved = Checkpoints(path.parent)
    if fault := saved.fault(int(path.name)):
        raise CheckpointError(f"CHECKPOINT: {fault}")
    return saved.directory, int(path.name)


def _check_adapters(config: Config) -> None:
    if config.lora.rank is None:
        raise UserError("--adapter: this run has no adapters; leave it out")
    if config.model.path is None or config.warmup.steps:
        why = "drawn from the seed" if config.model.path is None else "changed by the warm-up"
        raise UserError(
            f"--adapter: the weights under these adapters were {why}, so no model directory has them; leave it out to "
            "write them and the adapters merged"
        )


def _changed(stored: dict[str, Any], changes: Sequence[str]) -> Config:
    for change in changes:
        stored = override(stored, change)
    return from_dict(stored)


def _write(
    saved: Checkpoints,
    step: int,
    mesh: jax.sharding.Mesh,
    model: Model,
    stored: dict[str, Any],
    arguments: argparse.Namespace,
) -> None:
    """Writes the model, adapters merged, or the adapters alone."""
    source, lora, dtype, base = model.source, model.lora, arguments.dtype, stored["model"]["path"]
    if arguments.adapter:
        adapters = restore_adapters(saved, step, mesh, shape=model.shape, lora=lora, source=source)
        save_adapter(adapters, model.shape, lora, source.family, arguments.directory, base=base, dtype=dtype)
        return
    params = merge_adapters(restore_policy(saved, step, mesh, shape=model.shape, lora=lora, source=source))
    measured = figures(saved.directory.parent, step)
    card = Card(base=base, step=step, settings=dump(from_dict(stored)), figures=measured)
    export(params, model.shape, model.tokenizer, arguments.directory, card=card, source=source, dtype=dtype)


def figures(out: Path, step: int) -> dict[str, dict[str, float]]:
    """Returns the run's figures up to a step: held-out accuracy at first and at last, and the last step's training."""
    if not (out / "metrics.jsonl").exists():
        return {}
    evaluations = [row for row in read_metrics(out, "eval") if row["step"] <= step]
    table: dict[str, dict[str, float]] = {}
    for row in evaluations[:1] + evaluations[1:][-1:]:
        for name, value in row.items():
            if name not in ("kind", "step"):
                table.setdefault(f"held out, {name}", {})[f"step {row['step']}"] = value
    for row in [row for row in read_metrics(out, "train") if row["step"] <= step][-1:]:
        for name in TRAINING:
            if name in row:
                table[f"training, {name}"] = {f"step {row['step']}": row[name]}
    return table

"""`grpo-jax export`: the last checkpoint as a model directory that transformers reads."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import jax

from grpo_jax.cli.build import checked_run, trained_state
from grpo_jax.cli.main import UserError
from grpo_jax.config import Config, dump
from grpo_jax.models import fold
from grpo_jax.models.weights import Card, export, fitting_family
from grpo_jax.models.weights.adapter import save_adapter
from grpo_jax.models.weights.write import check_new
from grpo_jax.train import Run
from grpo_jax.train.record import read_metrics
from grpo_jax.train.state import TrainState, policy_params

TRAINING = ("reward", "success", "kl", "entropy", "length")
"""Figures of the last step that a card shows beside those of evaluation."""


def run(config: Config, arguments: argparse.Namespace) -> int:
    """Returns the exit status; prints where the model is."""
    if "=" in arguments.directory:
        raise UserError(f"DIR: {arguments.directory!r} is an override; the order is CONFIG DIR dotted.key=value")
    built = dataclasses.replace(checked_run(config), resume="must")
    if arguments.adapter and built.learner.lora is None:
        raise UserError("--adapter: this run has no adapters; leave it out, or set lora.rank")
    try:
        check_new(arguments.directory)
        with jax.set_mesh(built.mesh):
            state, step = trained_state(built)
            _write(built, state, step, config, arguments)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    print(f"{built.out}, step {step}: {arguments.directory}")
    return 0


def _write(run: Run, state: TrainState, step: int, config: Config, arguments: argparse.Namespace) -> None:
    """Writes the model, adapters merged, or the adapters alone."""
    learner, dtype = run.learner, arguments.dtype
    if arguments.adapter:
        family = run.source.family if run.source else fitting_family(learner.model)
        base = config.model.path
        save_adapter(state.params, learner.model, learner.lora, family, arguments.directory, base=base, dtype=dtype)
        return
    card = Card(base=config.model.path, step=step, settings=dump(config), figures=figures(run.out, step))
    params = fold(policy_params(learner, state))
    export(params, learner.model, run.tokenizer, arguments.directory, card=card, source=run.source, dtype=dtype)


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

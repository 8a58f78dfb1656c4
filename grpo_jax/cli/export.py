"""`grpo-jax export`: the last checkpoint as a model directory that transformers reads."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import jax

from grpo_jax.cli.build import checked_run, trained_params
from grpo_jax.cli.main import UserError
from grpo_jax.config import Config, dump
from grpo_jax.models.weights import Card, export
from grpo_jax.models.weights.write import check_new
from grpo_jax.train.record import read_metrics

TRAINING = ("reward", "success", "kl", "entropy", "length")
"""Figures of the last step that a card shows beside those of evaluation."""


def run(config: Config, arguments: argparse.Namespace) -> int:
    """Returns the exit status; prints where the model is."""
    if "=" in arguments.directory:
        raise UserError(f"DIR: {arguments.directory!r} is an override; the order is CONFIG DIR dotted.key=value")
    built = dataclasses.replace(checked_run(config), resume="must")
    try:
        check_new(arguments.directory)
        with jax.set_mesh(built.mesh):
            params, step = trained_params(built)
            card = Card(base=config.model.path, step=step, settings=dump(config), figures=figures(built.out, step))
            export(
                params,
                built.learner.model,
                built.tokenizer,
                arguments.directory,
                card=card,
                source=built.source,
                dtype=arguments.dtype,
            )
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    print(f"{built.out}, step {step}: {arguments.directory}")
    return 0


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

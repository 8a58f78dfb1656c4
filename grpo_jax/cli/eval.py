"""`grpo-jax eval`: held-out accuracy of the last checkpoint."""

from __future__ import annotations

import argparse
import dataclasses

import jax

from grpo_jax.cli.build import checked_run, trained_params
from grpo_jax.cli.error import UserError
from grpo_jax.config import load
from grpo_jax.rewards import Rewards
from grpo_jax.run import evaluate
from grpo_jax.run.compiled import compiled_publish


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status; prints one measure a line."""
    config = load(arguments.config, arguments.overrides)
    built = checked_run(dataclasses.replace(config, resume="must"))
    settings = built.settings
    if built.test_data is None:
        raise UserError(
            f"data.test: null; expected the path of a .jsonl file, because {config.data.source} holds none out"
        )
    with (
        jax.set_mesh(built.mesh),
        Rewards(built.rewards, workers=settings.reward_workers, deadline=settings.reward_deadline) as rewards,
    ):
        rewards.check_columns(built.test_data.columns([0]).keys())
        params, step = trained_params(built)
        scores = evaluate(built, rewards, compiled_publish(built.learner.model, params))
    print(f"{built.out}, step {step}, {len(built.test_data)} held-out problems")
    for name, value in scores.items():
        print(f"{name:<10}{value:.4f}")
    return 0

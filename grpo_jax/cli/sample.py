"""`grpo-jax sample`: completions of the user's prompts from the last checkpoint."""

from __future__ import annotations

import argparse
import dataclasses

import jax

from grpo_jax.cli.build import checked_run, trained_params
from grpo_jax.cli.error import UserError
from grpo_jax.config import load
from grpo_jax.data import Dataset
from grpo_jax.mesh import make_mesh
from grpo_jax.run.compiled import compiled_publish
from grpo_jax.run.draw import draw, encoded
from grpo_jax.run.evaluation import eval_sampler


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status; prints every prompt with its completions."""
    built = checked_run(dataclasses.replace(load(arguments.config, arguments.overrides), resume="must"))
    if arguments.n < 1:
        raise UserError(f"--n: {arguments.n}; expected at least 1")
    try:
        sampler = eval_sampler(built)
        if arguments.temperature is not None:
            sampler = dataclasses.replace(sampler, temperature=arguments.temperature)
        encoded(built, arguments.prompt)
    except ValueError as error:
        raise UserError(str(error)) from error
    data = Dataset(tuple({"prompt": prompt} for prompt in arguments.prompt))
    # The number of prompts is the user's, so they are not split over devices.
    built = dataclasses.replace(built, mesh=make_mesh())
    with jax.set_mesh(built.mesh):
        params, step = trained_params(built)
        published = compiled_publish(built.learner.model, params)
        groups = draw(built, published, data, range(len(data)), step=step, group=arguments.n, sampler=sampler)
    for group in groups:
        for completion in group.completions:
            print(f"{group.prompt}{completion}")
    return 0

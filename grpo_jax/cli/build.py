"""What the commands share: a run from a configuration, and the weights of its last checkpoint."""

from __future__ import annotations

from grpo_jax.cli.error import UserError
from grpo_jax.config import Config
from grpo_jax.config.build import build_run
from grpo_jax.models.decoder import Params
from grpo_jax.run import CheckpointError, Checkpoints, Run
from grpo_jax.run.policy import restore_policy
from grpo_jax.run.resume import find_start


def checked_run(config: Config) -> Run:
    """Returns the run.

    Raises:
      UserError: what the configuration names does not exist or does not fit.
    """
    try:
        return build_run(config)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def trained_params(run: Run) -> tuple[Params, int]:
    """Returns the policy's parameters in the newest checkpoint of the run's directory, and its step.

    Raises:
      UserError: there is none, or it is of another configuration.
    """
    learner = run.learner
    try:
        with Checkpoints(run.out / "checkpoints", keep=run.settings.checkpoint.keep) as saved:
            step = find_start(run, saved).step
            shape, lora = learner.model, learner.lora
            return restore_policy(saved, step, run.mesh, shape=shape, lora=lora, source=run.model_source), step
    except (CheckpointError, ValueError, OSError) as error:
        raise UserError(str(error)) from error

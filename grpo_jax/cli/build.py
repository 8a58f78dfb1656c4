"""What the commands share: a run from a configuration, and the weights of its last checkpoint."""

from __future__ import annotations

from grpo_jax.cli.main import UserError
from grpo_jax.config import Config
from grpo_jax.config.build import build_run
from grpo_jax.models.decoder import Params
from grpo_jax.train import CheckpointError, Checkpoints, Run
from grpo_jax.train.resume import find_start, restore
from grpo_jax.train.state import TrainState, policy_params


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
    state, step = trained_state(run)
    return policy_params(run.learner, state), step


def trained_state(run: Run) -> tuple[TrainState, int]:
    """Returns the state of the newest checkpoint of the run's directory, and its step.

    Raises:
      UserError: there is none, or it is of another configuration.
    """
    try:
        with Checkpoints(run.out / "checkpoints", keep=run.keep) as saved:
            start = find_start(run, saved)
            return restore(run, saved, start), start.step
    except CheckpointError as error:
        raise UserError(str(error)) from error

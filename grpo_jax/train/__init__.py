"""The stateless training step, and the loop, evaluation and checkpoints around it."""

from grpo_jax.train.checkpoint import CheckpointError, Checkpoints
from grpo_jax.train.evaluate import evaluate, pass_at_k
from grpo_jax.train.experience import experience
from grpo_jax.train.learner import Learner
from grpo_jax.train.loop import Result, train
from grpo_jax.train.optimizer import make_optimizer, make_schedule
from grpo_jax.train.run import Run
from grpo_jax.train.state import TrainState, init_state
from grpo_jax.train.step import train_step

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Learner",
    "Result",
    "Run",
    "TrainState",
    "evaluate",
    "experience",
    "init_state",
    "make_optimizer",
    "make_schedule",
    "pass_at_k",
    "train",
    "train_step",
]

"""A whole run as one value: everything is decided, checked and built before anything is compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax

from grpo_jax.data import Dataset, Tokenizer
from grpo_jax.models.weights.source import Source
from grpo_jax.rewards import Reward
from grpo_jax.rollout import Sampler
from grpo_jax.train.learner import Learner


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rolling:
    """How completions are drawn: `group` per prompt, `max_tokens` at most, tests for the end every `check_every`."""

    group: int
    max_tokens: int
    check_every: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmUp:
    """Supervised updates on demonstrations before the first rollout.

    Attributes:
      steps: updates; 0 skips the phase.
      batch: demonstrations per update.
      learner: the supervised objective and its optimizer.
      demonstrate: `(rows of the training data, seed) -> completions`.
    """

    steps: int
    batch: int
    learner: Learner
    demonstrate: Callable[[Sequence[int], Sequence[int]], list[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When and how held-out problems are answered.

    Attributes:
      every: steps between evaluations; None evaluates only before and after.
      samples: sampled completions per problem.
      sampler: how they are drawn; filters are allowed here.
      answer_after: the vote of maj@k counts the text after the last occurrence of this; empty counts all of it.
    """

    every: int | None
    samples: int
    sampler: Sampler
    answer_after: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run.

    Attributes:
      description: the configuration as plain data; stored in checkpoints and compared on resume.
      source: the model directory that the run begins from; None begins with random parameters.
      prompt_length: tokens of a padded prompt, S.
      prompts: prompts per step, P.
      reference_every: steps after which the reference moves towards the policy; None keeps the first.
      reference_mix: how far it moves; 1 makes the current policy the reference.
      notes: remarks about model and data, for the run's log.
      dynamic_rounds: rounds of prompts that a step may draw until its groups all differ in reward; 1 takes what comes.
    """

    seed: int
    out: Path
    resume: str
    description: dict[str, Any]
    mesh: jax.sharding.Mesh
    source: Source | None
    learner: Learner
    schedule: optax.Schedule
    warm_up: WarmUp | None
    tokenizer: Tokenizer
    train_data: Dataset
    test_data: Dataset | None
    prompt_length: int
    rolling: Rolling
    rewards: tuple[Reward, ...]
    reward_workers: int
    reward_deadline: float
    steps: int
    prompts: int
    reference_every: int | None
    reference_mix: float
    dynamic_rounds: int
    evaluation: Evaluation
    checkpoint_every: int
    keep: int
    notes: tuple[str, ...] = ()

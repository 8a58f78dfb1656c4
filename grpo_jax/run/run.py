"""A whole run as one value: everything is decided, checked and built before anything is compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import optax

from grpo_jax.data.dataset import Dataset
from grpo_jax.data.tokenizer import Tokenizer
from grpo_jax.learn.learner import Learner
from grpo_jax.mesh.mesh import devices_along
from grpo_jax.models.weights.source import ModelSource
from grpo_jax.rewards import Reward
from grpo_jax.run.settings import RunSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run.

    Attributes:
      settings: the configuration, of which the loop reads these fields; stored in checkpoints, compared on resume.
      model_source: the model directory that the run begins from; None begins with random parameters.
      learner: the policy's updates.
      warmup_learner: the supervised updates before the first rollout; None without a warm-up.
      demonstrate: `(rows of the training data, seed) -> completions` to imitate in them.
      schedule: the learning rate of each update, for the record.
      notes: remarks about model and data, for the run's log.
    """

    settings: RunSettings
    mesh: jax.sharding.Mesh
    model_source: ModelSource | None
    learner: Learner
    warmup_learner: Learner | None
    demonstrate: Callable[[Sequence[int], Sequence[int]], list[str]]
    schedule: optax.Schedule
    tokenizer: Tokenizer
    train_data: Dataset
    test_data: Dataset | None
    rewards: tuple[Reward, ...]
    notes: tuple[str, ...] = ()

    @property
    def out(self) -> Path:
        """The directory of everything that the run writes."""
        return Path(self.settings.out)

    @property
    def group_devices(self) -> int:
        """The devices that the completions of a group are split over: the fewest that can be drawn."""
        return devices_along(self.mesh, self.learner.model.rules.axes("sample"))

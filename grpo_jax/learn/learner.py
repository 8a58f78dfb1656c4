"""Everything about an update that is decided before it is compiled."""

from __future__ import annotations

import dataclasses

import optax

from grpo_jax.core.objective import Objective
from grpo_jax.learn.settings import UpdateSettings
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.settings import Lora


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """The static half of a training step. It hashes by value, so it is a static argument of `jit`.

    Attributes:
      model: the policy's shape, the temperature that it is sampled and scored at, and its sharding rules.
      objective: the terms of the loss.
      optimizer: an optax transformation.
      critic_optimizer: of the critic, where the objective has one; None takes `optimizer`.
      lora: the adapters that are trained while all weights stay as they are; None trains the weights themselves.
      updates: how a rollout is cut into updates.
    """

    model: DecoderConfig
    objective: Objective
    optimizer: optax.GradientTransformation
    critic_optimizer: optax.GradientTransformation | None = None
    lora: Lora | None = None
    updates: UpdateSettings = dataclasses.field(default_factory=UpdateSettings)

"""Everything about an update that is decided before it is compiled."""

from __future__ import annotations

import dataclasses

import optax

from grpo_jax.core import Objective
from grpo_jax.models import DecoderConfig, Lora


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """The static half of a training step. It hashes by value, so it is a static argument of `jit`.

    Attributes:
      model: the policy's shape.
      objective: the terms of the loss.
      optimizer: an optax transformation.
      lora: the adapters that are trained while all weights stay as they are; None trains the weights themselves.
      critic_optimizer: of the critic, where the objective has one; None takes `optimizer`'s.
      temperature: of the sampler; log-probs are scored at it.
      logprob_chunk: completion positions whose logits are alive at once.
      minibatches: optimizer updates per pass over a batch; each takes an equal share of its prompts.
      epochs: passes over a batch.
      micro_prompts: prompts whose gradient is computed at once; None takes the whole minibatch.
      overlong_buffer: tokens before the limit over which the reward of a completion sinks (`soft_overlong`); None
        leaves rewards alone.
      overlong_penalty: how far it sinks, in units of the reward.
      mask_truncated: leaves completions that the limit cut out of the loss.
    """

    model: DecoderConfig
    objective: Objective
    optimizer: optax.GradientTransformation
    lora: Lora | None = None
    critic_optimizer: optax.GradientTransformation | None = None
    temperature: float = 1.0
    logprob_chunk: int = 16
    minibatches: int = 1
    epochs: int = 1
    micro_prompts: int | None = None
    overlong_buffer: int | None = None
    overlong_penalty: float = 1.0
    mask_truncated: bool = False

    @property
    def updates(self) -> int:
        """Optimizer updates per batch."""
        return self.minibatches * self.epochs

    def micro_batches(self, prompts: int) -> int:
        """Returns the number of micro-batches that `prompts` prompts are cut into.

        Raises:
          ValueError: `micro_prompts` does not divide `prompts`.
        """
        size = self.micro_prompts or prompts
        if prompts % size:
            raise ValueError(f"micro_prompts: {size} does not divide the {prompts} prompts of a minibatch")
        return prompts // size

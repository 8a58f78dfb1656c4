"""The critic: a decoder of the policy's shape that says, before each token, what reward it expects.

It begins as a copy of the policy with an output of zeros, and learns beside it (PPO, arXiv:1707.06347). Position t of
its last hidden states has read all tokens before the t-th: what it says is the value of the state in which the t-th
token is drawn.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from grpo_jax.core.value import value_loss
from grpo_jax.learn.learner import Learner
from grpo_jax.models.decoder import Params, hidden_states
from grpo_jax.types import PromptBatch, TokenBatch, WeightedSum


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Critic:
    """The critic's part of the training state."""

    params: dict[str, Any]
    """`decoder`: as the policy's; `output`: [D]."""
    opt_state: optax.OptState


def init_critic(learner: Learner, params: Params) -> Critic:
    """Returns a critic that has read what the policy has, and expects 0 everywhere."""
    decoder = jax.tree.map(jnp.copy, params)
    critic = {"decoder": decoder, "output": jnp.zeros(learner.model.hidden, jnp.float32)}
    return Critic(params=critic, opt_state=critic_optimizer(learner).init(critic))


def critic_optimizer(learner: Learner) -> optax.GradientTransformation:
    """Returns the transformation of the critic's gradients."""
    return learner.critic_optimizer or learner.optimizer


def values(
    learner: Learner, params: dict[str, Any], prompt: PromptBatch, tokens: Int[Array, "P G T"]
) -> Float[Array, "P G T"]:
    """Returns what the critic expects before each token of the completions, in units of the reward."""
    hidden = hidden_states(learner.model, params["decoder"], prompt, tokens)
    return jnp.matmul(hidden.astype(jnp.float32), params["output"])


def critic_loss(
    learner: Learner, params: dict[str, Any], batch: TokenBatch
) -> tuple[WeightedSum, dict[str, WeightedSum]]:
    """Returns the critic's loss on a batch, not yet divided, and its metrics."""
    return value_loss(
        learner.objective,
        value=values(learner, params, batch.prompt, batch.tokens),
        old_value=batch.value,
        returns=batch.returns,
        mask=batch.mask,
    )

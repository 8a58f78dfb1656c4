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
from jaxtyping import Array, Float

from grpo_jax.learn.learner import Learner
from grpo_jax.models.decoder import Params, hidden_states
from grpo_jax.models.rows import Rows


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


def values(learner: Learner, params: dict[str, Any], rows: Rows) -> Float[Array, "P G U"]:
    """Returns what the critic expects before each token of some rows, in units of the reward."""
    hidden = hidden_states(learner.model, params["decoder"], rows)
    return jnp.matmul(hidden.astype(jnp.float32), params["output"])

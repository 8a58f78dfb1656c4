"""From rewards to advantages."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.masking import sanitise
from grpo_jax.core.objective import Objective
from grpo_jax.core.returns import reward_with_kl
from grpo_jax.core.slots import asks, fill
from grpo_jax.types import Grades


def grade(
    objective: Objective,
    grades: Grades,
    mask: Bool[Array, "P G T"],
    *,
    token_reward: Float[Array, "P G T"] | None = None,
    value: Float[Array, "P G T"] | None = None,
) -> Float[Array, "P G T"]:
    """Returns the advantage of every token: what the objective's `advantage` makes of the rewards of groups.

    Gradient: none is meant to flow; rewards are data.

    Args:
      grades: rewards of the completions, and what else the advantage asks for.
      mask: tokens that were drawn.
      token_reward: of each token; its sum is the reward of a completion with its KL penalty. None puts the reward on
        the last token.
      value: what the critic expects before each token.

    Raises:
      ValueError: the advantage asks for something that the rewards do not say, such as rewards of steps.
    """
    mask = valid_tokens(grades, mask)
    if token_reward is None:
        token_reward = reward_with_kl(grades.reward, jnp.zeros(mask.shape), mask, coef=0.0)
    known = {field.name: getattr(grades, field.name) for field in dataclasses.fields(Grades)}
    if "step_reward" in asks(objective.advantage) and grades.step_reward is None:
        raise ValueError(
            f"advantage: {objective.advantage} needs rewards of steps, and no reward function returns lists of "
            "(end, value)"
        )
    available = {**known, "mask": mask, "token_reward": token_reward, "value": value}
    reward, valid = grades.reward, grades.valid & jnp.isfinite(grades.reward)
    if objective.reward_kl_coef:
        reward = jnp.sum(token_reward, axis=-1, where=mask)
    advantage = objective.advantage(reward, valid, **fill("advantage", objective.advantage, available))
    if advantage.ndim == mask.ndim - 1:
        advantage = jnp.broadcast_to(advantage[..., None], mask.shape)
    return sanitise(advantage, mask)


def valid_tokens(grades: Grades, mask: Bool[Array, "P G T"]) -> Bool[Array, "P G T"]:
    """Returns the drawn tokens of the completions whose reward applies and is finite."""
    return mask & (grades.valid & jnp.isfinite(grades.reward))[..., None]

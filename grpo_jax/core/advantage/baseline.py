"""Baselines other than the plain mean of a group."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.advantage.statistics import centre, clean, scored
from grpo_jax.core.checks import require_floats
from grpo_jax.core.masking import sanitise


def greedy_baseline(
    reward: Float[Array, "*b G"], valid: Bool[Array, "*b G"], *, greedy_reward: Float[Array, "*b"]
) -> Float[Array, "*b G"]:
    """Returns the reward's distance from that of the prompt's greedy completion (ReMax).

        A_g = r_g - r_greedy

    Nothing is centred: where every sample beats the greedy completion, every advantage is positive.

    Gradient: 1 on the own reward, -1 on the greedy one.

    Args:
      greedy_reward: one number for each prompt; where it is not finite, the whole group has advantage 0.

    Reference: ReMax, arXiv:2310.10505, algorithm 1.

    >>> greedy_baseline(jnp.array([1.0, 0.0]), jnp.ones(2, bool), greedy_reward=jnp.array(0.25))
    Array([ 0.75, -0.25], dtype=float32)
    """
    reward, valid = clean(reward, valid)
    require_floats("greedy_reward", greedy_reward)
    if jnp.shape(greedy_reward) != jnp.shape(reward)[:-1]:
        raise ValueError(
            f"greedy_reward has shape {jnp.shape(greedy_reward)}, but reward has shape {jnp.shape(reward)}; "
            "greedy_reward lacks only G"
        )
    known = jnp.isfinite(greedy_reward)
    return sanitise(reward - sanitise(greedy_reward, known)[..., None], valid & known[..., None])


def length_weighted(
    reward: Float[Array, "*b G"], valid: Bool[Array, "*b G"], *, mask: Bool[Array, "*b G T"]
) -> Float[Array, "*b G"]:
    """Returns the reward's distance from the mean of its group, weighted by length (OPO).

        A_g = r_g - sum_h l_h r_h / sum_h l_h              l: scored tokens of a completion

    The baseline that minimises the variance of the policy gradient, if the squared gradient of a completion is
    proportional to its length. So it is sum_g l_g A_g that is 0, not sum_g A_g. A completion without scored tokens
    has no weight and advantage 0.

    Gradient: dA_g/dr_h = [g = h] - l_h / sum(l).

    Args:
      mask: True on scored tokens.

    Reference: On-Policy RL with Optimal Reward Baseline, arXiv:2505.23585, section 3. Trainers may keep the plain
    reward of a lone completion.

    >>> mask = jnp.array([[True, True, True], [True, False, False]])
    >>> length_weighted(jnp.array([1.0, 0.0]), jnp.ones(2, bool), mask=mask)
    Array([ 0.25, -0.75], dtype=float32)
    """
    reward, valid = clean(reward, valid)
    length = jnp.sum(scored(valid, mask), axis=-1)
    valid = length > 0
    # The mean is taken off first: the weighted sum is then of small numbers, and exactly 0 where all are equal.
    apart = centre(reward, valid)
    share = length / jnp.maximum(jnp.sum(length, axis=-1, keepdims=True), 1)
    return sanitise(apart - jnp.sum(share * apart, axis=-1, keepdims=True), valid)

"""Rewards of single tokens, and what they add up to."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.checks import require_mask
from grpo_jax.core.masking import as_float, sanitise


def reward_with_kl(
    reward: Float[Array, "*b"], kl: Float[Array, "*b T"], mask: Bool[Array, "*b T"], *, coef: float
) -> Float[Array, "*b T"]:
    """Returns the reward of each token: a KL penalty everywhere, the score on the last scored token.

        R_t = -coef kl_t + [t is the last scored token] reward

    The sum over T is the penalised reward of a completion. A reward that is NaN stays NaN there.

    Gradient: that of the formula; a reward is data, so the caller detaches `kl`.

    Args:
      reward: the score of each completion.
      kl: KL term of each token, as of `k1`; padding may hold anything.
      mask: True on scored tokens; a row without any gives 0 everywhere.
      coef: weight of the penalty.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: the shapes do not fit.

    Reference: InstructGPT, arXiv:2203.02155, section 3.5.

    >>> reward_with_kl(jnp.array(1.0), jnp.array([0.5, 0.25, jnp.nan]), jnp.array([True, True, False]), coef=0.5)
    Array([-0.25 ,  0.875,  0.   ], dtype=float32)
    """
    require_mask("mask", mask, "kl", kl)
    if jnp.shape(reward) != jnp.shape(kl)[:-1]:
        raise ValueError(f"reward has shape {jnp.shape(reward)}, but kl has shape {jnp.shape(kl)}; reward lacks only T")
    position = jnp.arange(jnp.shape(kl)[-1])
    last = jnp.max(jnp.where(mask, position, -1), axis=-1, keepdims=True, initial=-1)
    score = jnp.where(position == last, as_float(reward)[..., None], 0.0)
    return score - coef * sanitise(kl, mask)

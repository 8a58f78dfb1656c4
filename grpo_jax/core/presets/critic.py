"""Proximal Policy Optimization with a critic."""

from __future__ import annotations

from grpo_jax.core.advantage import Gae
from grpo_jax.core.aggregate import token_mean
from grpo_jax.core.kl import k1
from grpo_jax.core.objective import Objective
from grpo_jax.core.surrogate import PpoClip
from grpo_jax.core.value import ClippedValue


def ppo() -> Objective:
    """Returns PPO with a critic, as it was first used on language models.

        loss = mean over all tokens of -min(r_t A_t, clip(r_t, 0.8, 1.2) A_t),   A = GAE(gamma 1, lambda 0.95), whitened
        critic = mean over all tokens of max((V - R)^2, (clip(V, V_old +- 0.2) - R)^2) / 2

    The KL is in the reward, 0.02 a token. An entropy bonus or a dual clip are a `replace` away: `entropy_coef=0.01`,
    `surrogate=PpoClip(dual=3.0)`.

    References: PPO, arXiv:1707.06347, equation 7; InstructGPT, arXiv:2203.02155, appendix C.

    >>> ppo().advantage, ppo().value
    (Gae(gamma=1.0, lam=0.95, whiten=True, eps=1e-08), ClippedValue(clip=0.2))
    """
    return Objective(
        advantage=Gae(gamma=1.0, lam=0.95),
        surrogate=PpoClip(low=0.2, high=0.2),
        kl=k1,
        reward_kl_coef=0.02,
        aggregate=token_mean,
        value=ClippedValue(clip=0.2),
    )

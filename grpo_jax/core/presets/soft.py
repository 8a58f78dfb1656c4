"""Objectives whose tokens keep a gradient where PPO's clip would take it."""

from __future__ import annotations

from grpo_jax.core.advantage import GroupNormalised
from grpo_jax.core.aggregate import sequence_mean, token_mean
from grpo_jax.core.objective import Objective
from grpo_jax.core.surrogate import CispoClip, Sapo


def cispo() -> Objective:
    """Returns Clipped Importance-Sampling Policy Optimization.

        loss = mean over all tokens of -sg(min(r_t, 5)) A log pi(o_t)

    The weight is clipped, never the token. MiniMax-M1 sets no lower bound and does not print the upper one; 5 is what
    ScaleRL found and what TRL documents, and with no lower bound both readings of the clip agree. No KL term.

    References: MiniMax-M1, arXiv:2506.13585, equations 4 and 5; ScaleRL, arXiv:2510.13786.

    >>> cispo().surrogate
    CispoClip(low=1.0, high=4.0)
    """
    return Objective(advantage=GroupNormalised(), surrogate=CispoClip(low=1.0, high=4.0), aggregate=token_mean)


def sapo() -> Objective:
    """Returns Soft Adaptive Policy Optimization.

        loss = mean over completions of (1/|o|) sum_t -(4 / tau) sigmoid(tau (r_t - 1)) A

    tau is 1 for A > 0 and 1.05 for A < 0: what pushes tokens down fades faster. No KL term.

    Reference: SAPO, arXiv:2511.20347, equations 5 to 7.

    >>> sapo().surrogate
    Sapo(positive=1.0, negative=1.05)
    """
    return Objective(advantage=GroupNormalised(), surrogate=Sapo(positive=1.0, negative=1.05), aggregate=sequence_mean)

"""Objectives that compare whole completions."""

from __future__ import annotations

from grpo_jax.core.advantage import GroupNormalised
from grpo_jax.core.aggregate import sequence_mean
from grpo_jax.core.objective import Objective
from grpo_jax.core.ratio import sequence_average, sequence_average_token
from grpo_jax.core.surrogate import GeometricMean, PpoClip


def gspo() -> Objective:
    """Returns Group Sequence Policy Optimization.

        loss = mean over completions of -min(s A, clip(s, 1 - 3e-4, 1 + 4e-4) A),   s = (pi(o|q) / pi_old(o|q))^(1/|o|)

    The bounds are those of section 5.1, far tighter than a token's. No KL term.

    Reference: GSPO, arXiv:2507.18071, equations 5 to 7.

    >>> gspo().ratio.__name__, gspo().surrogate
    ('sequence_average', PpoClip(low=0.0003, high=0.0004, dual=None))
    """
    return Objective(
        advantage=GroupNormalised(),
        ratio=sequence_average,
        surrogate=PpoClip(low=3e-4, high=4e-4),
        aggregate=sequence_mean,
    )


def gspo_token() -> Objective:
    """Returns GSPO with advantages that may differ from token to token.

        loss = mean over completions of (1/|o|) sum_t -min(s_t A_t, clip(s_t, 1 - 3e-4, 1 + 4e-4) A_t)
        s_t = sg(s) pi(o_t) / sg(pi(o_t))

    In value s_t is the ratio of the sequence, and where a completion has one advantage the gradient is GSPO's.

    Reference: GSPO, arXiv:2507.18071, section 4.3.

    >>> gspo_token().ratio.__name__
    'sequence_average_token'
    """
    return Objective(
        advantage=GroupNormalised(),
        ratio=sequence_average_token,
        surrogate=PpoClip(low=3e-4, high=4e-4),
        aggregate=sequence_mean,
    )


def gmpo() -> Objective:
    """Returns Geometric-Mean Policy Optimization.

        loss = mean over completions of -(prod_t min-clipped r_t)^(1/|o|) A,   r_t within (e^-0.4, e^0.4)

    Every ratio is clipped before the mean, on the side on which the clip of PPO acts. No KL term.

    Reference: GMPO, arXiv:2507.20673, equation 4 and section 4.

    >>> gmpo().surrogate
    GeometricMean(low=0.4, high=0.4)
    """
    return Objective(advantage=GroupNormalised(), surrogate=GeometricMean(low=0.4, high=0.4), aggregate=sequence_mean)

"""What other trainers compute by default, so that a run can be compared with a run.

Their defaults as of TRL 1.16 and verl 0.7; what belongs to the run (batch sizes, learning rates) is not here.
"""

from __future__ import annotations

from grpo_jax.core.advantage import Gae, GroupNormalised
from grpo_jax.core.aggregate import token_mean
from grpo_jax.core.kl import Clamped, RatioWeighted, k3
from grpo_jax.core.objective import Objective
from grpo_jax.core.surrogate import PpoClip
from grpo_jax.core.value import ClippedValue


def trl_grpo() -> Objective:
    """Returns what TRL's GRPOTrainer computes by default.

        loss = mean over all tokens of -min(r_t A, clip(r_t, 0.8, 1.2) A),   A = (r - mean) / (std + 1e-4)

    Its default loss type is "dapo", the token mean over the whole batch; the deviation divides by n - 1; beta is 0.
    Where `kl_coef` is set, its KL is k3 times the ratio.

    Reference: arXiv:2402.03300 as in GRPOConfig of https://huggingface.co/docs/trl/grpo_trainer.

    >>> trl_grpo().advantage, trl_grpo().kl_coef
    (GroupNormalised(ddof=1, eps=0.0001), 0.0)
    """
    return Objective(
        advantage=GroupNormalised(ddof=1, eps=1e-4),
        surrogate=PpoClip(low=0.2, high=0.2),
        kl=RatioWeighted(kl=k3),
        aggregate=token_mean,
    )


def verl_grpo() -> Objective:
    """Returns what verl computes with `adv_estimator=grpo` and its other defaults.

        loss = mean over all tokens of -min(r_t A, clip(r_t, 0.8, 1.2) A), at most 3 |A| where A < 0
        A = (r - mean) / (std + 1e-6)

    Its clip_ratio_c of 3 is a dual clip, and its KL loss is off; where `kl_coef` is set, its "low_var_kl" is k3
    between clamps.

    Reference: arXiv:2402.03300 as in https://verl.readthedocs.io/en/latest/examples/config.html.

    >>> verl_grpo().surrogate, verl_grpo().kl_coef
    (PpoClip(low=0.2, high=0.2, dual=3.0), 0.0)
    """
    return Objective(
        advantage=GroupNormalised(ddof=1, eps=1e-6),
        surrogate=PpoClip(low=0.2, high=0.2, dual=3.0),
        kl=Clamped(kl=k3),
        aggregate=token_mean,
    )


def verl_ppo() -> Objective:
    """Returns what verl computes with its default `adv_estimator=gae`.

        loss as `verl_grpo`,   A = GAE(gamma 1, lambda 1), whitened over all tokens
        critic = mean over all tokens of max((V - R)^2, (clip(V, V_old +- 0.5) - R)^2) / 2

    Reference: arXiv:1707.06347 as in https://verl.readthedocs.io/en/latest/examples/config.html.

    >>> verl_ppo().advantage, verl_ppo().value
    (Gae(gamma=1.0, lam=1.0, whiten=True, eps=1e-08), ClippedValue(clip=0.5))
    """
    return Objective(
        advantage=Gae(gamma=1.0, lam=1.0),
        surrogate=PpoClip(low=0.2, high=0.2, dual=3.0),
        kl=Clamped(kl=k3),
        aggregate=token_mean,
        value=ClippedValue(clip=0.5),
    )

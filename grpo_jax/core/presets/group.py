"""GRPO and what was changed about its clip, its mean and its deviation."""

from __future__ import annotations

from grpo_jax.core.advantage import GroupNormalised, centred
from grpo_jax.core.aggregate import ConstantLength, sequence_mean, token_mean
from grpo_jax.core.kl import k3
from grpo_jax.core.objective import Objective
from grpo_jax.core.ratio import per_sequence, per_token
from grpo_jax.core.surrogate import PpoClip


def grpo() -> Objective:
    """Returns Group Relative Policy Optimization as DeepSeekMath trains it.

        loss = mean over completions of (1/|o|) sum_t [ -min(r_t A, clip(r_t, 0.8, 1.2) A) + 0.04 k3_t ]

    KL coefficient 0.04, rewards normalised in their group; the paper leaves the clip open, 0.2 is PPO's. Of the
    run: 64 completions per prompt, batches of 1024, learning rate 1e-6, and one update per rollout, with which
    the ratio is 1 and the clip never acts. For process supervision, replace `advantage` by `ProcessNormalised()`.

    Reference: DeepSeekMath, arXiv:2402.03300, equations 3 and 4, section 4.2.

    >>> grpo().surrogate, grpo().kl_coef
    (PpoClip(low=0.2, high=0.2, dual=None), 0.04)
    """
    return Objective(
        advantage=GroupNormalised(),
        ratio=per_token,
        surrogate=PpoClip(low=0.2, high=0.2),
        kl=k3,
        kl_coef=0.04,
        aggregate=sequence_mean,
    )


def deepseek_r1() -> Objective:
    """Returns the objective of DeepSeek-R1: GRPO on the ratio of whole completions, with a clip of 10.

        loss = mean over completions of [ -min(r A, clip(r, 1 - 10, 1 + 10) A) ] + 0.001 k3,   r = pi(o|q) / pi_old(o|q)

    A clip of 10 has no lower bound, as no ratio is below 1 - 10. KL coefficient 0.001. The equation writes the KL
    term of whole completions too; here it is estimated token by token and averaged, as in `grpo`: the k3 of a whole
    completion exponentiates a sum of log-ratios that grows with its length. Of the run: 16 completions per prompt,
    32 prompts a step, learning rate 3e-6, the reference replaced by the policy every 400 steps, rollouts of 8192
    completions in 16 minibatches, one epoch.

    Reference: DeepSeek-R1, arXiv:2501.12948, equations 1 to 3.

    >>> deepseek_r1().ratio.__name__, deepseek_r1().surrogate
    ('per_sequence', PpoClip(low=10.0, high=10.0, dual=None))
    """
    return Objective(
        advantage=GroupNormalised(),
        ratio=per_sequence,
        surrogate=PpoClip(low=10.0, high=10.0),
        kl=k3,
        kl_coef=0.001,
        aggregate=sequence_mean,
    )


def ppo_clip(*, low: float = 0.2, high: float = 0.2) -> Objective:
    """Returns GRPO with the given clip bounds and no KL term: the bounds as an ablation.

        loss = mean over completions of (1/|o|) sum_t -min(r_t A, clip(r_t, 1 - low, 1 + high) A)

    PPO itself clips at 0.2 on both sides; DAPO raises `high` to 0.28.

    Raises:
      ValueError: a bound is negative.

    References: PPO, arXiv:1707.06347, equation 7; DAPO, arXiv:2503.14476, section 3.1.

    >>> ppo_clip(high=0.28).surrogate, ppo_clip(high=0.28).needs_reference
    (PpoClip(low=0.2, high=0.28, dual=None), False)
    """
    return Objective(
        advantage=GroupNormalised(),
        ratio=per_token,
        surrogate=PpoClip(low=low, high=high),
        aggregate=sequence_mean,
    )


def dr_grpo(*, length: float = 3000.0) -> Objective:
    """Returns GRPO without its two biases: no division by the deviation, and none by a completion's own length.

        loss = sum over completions and tokens of -min(r_t A, clip(r_t, 0.8, 1.2) A) / (completions * length)
        A = r - mean(r)

    `length` is the generation budget, 3000 tokens in the authors' runs; with Adam it only scales the gradient that is
    clipped. No KL term.

    Raises:
      ValueError: `length` is not above 0.

    Reference: Understanding R1-Zero-Like Training, arXiv:2503.20783, section 3.

    >>> dr_grpo().advantage.__name__, dr_grpo().aggregate
    ('centred', ConstantLength(length=3000.0))
    """
    return Objective(
        advantage=centred,
        ratio=per_token,
        surrogate=PpoClip(low=0.2, high=0.2),
        aggregate=ConstantLength(length=length),
    )


def dapo() -> Objective:
    """Returns Decoupled Clip and Dynamic Sampling Policy Optimization: its loss.

        loss = mean over all tokens of -min(r_t A, clip(r_t, 0.8, 1.28) A)

    Clip-higher (0.2 below, 0.28 above), the mean over tokens, no KL term; the dual clip of 10 is of the authors'
    training script. Dynamic sampling and overlong shaping belong to the run: configs/recipes/dapo.yaml.

    Reference: DAPO, arXiv:2503.14476, equation 8 and section 4.1.

    >>> dapo().surrogate, dapo().aggregate.__name__
    (PpoClip(low=0.2, high=0.28, dual=10.0), 'token_mean')
    """
    return Objective(
        advantage=GroupNormalised(),
        ratio=per_token,
        surrogate=PpoClip(low=0.2, high=0.28, dual=10.0),
        aggregate=token_mean,
    )

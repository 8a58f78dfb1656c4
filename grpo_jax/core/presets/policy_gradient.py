"""Policy gradients that differ in their baseline, and supervised fine-tuning, which has none."""

from __future__ import annotations

from grpo_jax.core.advantage import (
    ReinforcePlusPlus,
    greedy_baseline,
    leave_one_out,
    length_weighted,
    zero_variance_rescaled,
)
from grpo_jax.core.aggregate import sequence_sum, token_mean
from grpo_jax.core.kl import k1
from grpo_jax.core.objective import Objective
from grpo_jax.core.surrogate import PpoClip, reinforce


def rloo() -> Objective:
    """Returns REINFORCE with a leave-one-out baseline.

        loss = mean over completions of -A log pi(o|q),   A = R - mean of the others' R,   R = r - 0.05 sum_t k1_t

    A completion is one action, so its tokens are summed. The KL is in the reward; 0.05 is the default of TRL's RLOO
    trainer.

    Reference: Back to Basics, arXiv:2402.14740, equations 6 to 8.

    >>> rloo().advantage.__name__, rloo().reward_kl_coef
    ('leave_one_out', 0.05)
    """
    return Objective(advantage=leave_one_out, surrogate=reinforce, kl=k1, reward_kl_coef=0.05, aggregate=sequence_sum)


def reinforce_pp() -> Objective:
    """Returns REINFORCE++: PPO's clip without a critic, advantages normalised over the whole batch.

        A_t = (R_t - mean) / std over all tokens of the batch,   R_t = r - 0.01 sum_{u >= t} k1_u
        loss = mean over all tokens of -min(r_t A_t, clip(r_t, 0.8, 1.2) A_t)

    The KL is in the reward, token by token; 0.01 is the default of the authors' trainer.

    Reference: REINFORCE++, arXiv:2501.03262, section 3.

    >>> reinforce_pp().surrogate, reinforce_pp().reward_kl_coef
    (PpoClip(low=0.2, high=0.2, dual=None), 0.01)
    """
    return Objective(
        advantage=ReinforcePlusPlus(),
        surrogate=PpoClip(low=0.2, high=0.2),
        kl=k1,
        reward_kl_coef=0.01,
        aggregate=token_mean,
    )


def remax() -> Objective:
    """Returns ReMax: REINFORCE whose baseline is the reward of the greedy completion.

        loss = mean over completions of -(r - r(greedy)) log pi(o|q)

    The run draws one more completion per prompt. No KL term.

    Reference: ReMax, arXiv:2310.10505, algorithm 2.

    >>> remax().advantage.__name__
    'greedy_baseline'
    """
    return Objective(advantage=greedy_baseline, surrogate=reinforce, aggregate=sequence_sum)


def opo() -> Objective:
    """Returns On-Policy RL with the Optimal baseline: exact on-policy steps, no KL, no entropy.

        loss = mean over completions of -(r - b) log pi(o|q),   b = sum |o| r / sum |o|

    The run must make one update per rollout (train.minibatches=1).

    Reference: OPO, arXiv:2505.23585, section 3.

    >>> opo().advantage.__name__
    'length_weighted'
    """
    return Objective(advantage=length_weighted, surrogate=reinforce, aggregate=sequence_sum)


def gpg() -> Objective:
    """Returns Group Policy Gradient: the policy gradient alone, rescaled for groups without variance.

        loss = mean over all tokens of -alpha (r - mean(r)) log pi(o_t),   alpha = groups / groups that differ

    No ratio, no clip, no reference.

    Reference: GPG, arXiv:2504.02546, section 3.

    >>> gpg().surrogate.__name__
    'reinforce'
    """
    return Objective(advantage=zero_variance_rescaled, surrogate=reinforce, aggregate=token_mean)


def sft() -> Objective:
    """Returns supervised fine-tuning: the mean negative log-likelihood of the tokens.

        loss = -mean over tokens of A_t log pi(o_t | q, o_<t),      A_t = 1

    The advantage is given by the batch: 1 everywhere is maximum likelihood, another number weighs an example.

    Reference: InstructGPT, arXiv:2203.02155, section 3.5.

    >>> sft().surrogate.__name__, sft().aggregate.__name__
    ('reinforce', 'token_mean')
    """
    return Objective(advantage=None, surrogate=reinforce, aggregate=token_mean)

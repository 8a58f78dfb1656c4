"""The mathematics: arrays in, arrays out. README.md lists every term with its equation, its source and its tests."""

from grpo_jax.core.advantage import Gae, GroupNormalised, ProcessNormalised
from grpo_jax.core.aggregate import sequence_mean, token_mean
from grpo_jax.core.kl import exact, k1, k2, k3
from grpo_jax.core.kl.exact import FullVocabulary, kl_divergence
from grpo_jax.core.logprobs import TokenLogprobs, token_logprobs
from grpo_jax.core.objective import Objective, policy_loss
from grpo_jax.core.preference import Dpo, Ipo, IpoPerToken, preference_loss
from grpo_jax.core.presets import (
    cispo,
    dapo,
    deepseek_r1,
    dr_grpo,
    gmpo,
    gpg,
    grpo,
    gspo,
    gspo_token,
    opo,
    ppo,
    ppo_clip,
    reinforce_pp,
    remax,
    rloo,
    sapo,
    sft,
    trl_grpo,
    verl_grpo,
    verl_ppo,
)
from grpo_jax.core.ratio import per_sequence, per_token
from grpo_jax.core.returns import reward_with_kl
from grpo_jax.core.robust import GroupRobust
from grpo_jax.core.surrogate import PpoClip, reinforce
from grpo_jax.core.unified import gradient_weights
from grpo_jax.core.value import ClippedValue

__all__ = [
    "ClippedValue",
    "Dpo",
    "FullVocabulary",
    "Gae",
    "GroupNormalised",
    "GroupRobust",
    "Ipo",
    "IpoPerToken",
    "Objective",
    "PpoClip",
    "ProcessNormalised",
    "TokenLogprobs",
    "cispo",
    "dapo",
    "deepseek_r1",
    "dr_grpo",
    "exact",
    "gmpo",
    "gpg",
    "gradient_weights",
    "grpo",
    "gspo",
    "gspo_token",
    "k1",
    "k2",
    "k3",
    "kl_divergence",
    "opo",
    "per_sequence",
    "per_token",
    "policy_loss",
    "ppo",
    "ppo_clip",
    "preference_loss",
    "reinforce",
    "reinforce_pp",
    "remax",
    "reward_with_kl",
    "rloo",
    "sapo",
    "sequence_mean",
    "sft",
    "token_logprobs",
    "token_mean",
    "trl_grpo",
    "verl_grpo",
    "verl_ppo",
]

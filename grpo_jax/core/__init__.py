"""The mathematics: arrays in, arrays out."""

from grpo_jax.core.advantage import GroupNormalised, ProcessNormalised
from grpo_jax.core.aggregate import sequence_mean, token_mean
from grpo_jax.core.kl import exact, k1, k2, k3
from grpo_jax.core.kl.exact import FullVocabulary, kl_divergence
from grpo_jax.core.logprobs import TokenLogprobs, token_logprobs
from grpo_jax.core.objective import Objective, policy_loss
from grpo_jax.core.presets import deepseek_r1, grpo, ppo_clip, sft
from grpo_jax.core.ratio import per_sequence, per_token
from grpo_jax.core.returns import reward_with_kl
from grpo_jax.core.surrogate import PpoClip, reinforce

__all__ = [
    "FullVocabulary",
    "GroupNormalised",
    "Objective",
    "PpoClip",
    "ProcessNormalised",
    "TokenLogprobs",
    "deepseek_r1",
    "exact",
    "grpo",
    "k1",
    "k2",
    "k3",
    "kl_divergence",
    "per_sequence",
    "per_token",
    "policy_loss",
    "ppo_clip",
    "reinforce",
    "reward_with_kl",
    "sequence_mean",
    "sft",
    "token_logprobs",
    "token_mean",
]

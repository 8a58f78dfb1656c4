"""The mathematics once more, in float64 NumPy: slow loops written from the papers, to compare against.

Nothing here imports or imitates `grpo_jax.core`. Padding is skipped, never masked: a loop visits scored tokens only.
Rows of tokens are `[B, T]`, groups are `[G]`; callers loop over further axes.
"""

from grpo_jax.testing.oracle.advantage import group_advantage, process_advantage
from grpo_jax.testing.oracle.aggregate import sequence_mean, token_mean
from grpo_jax.testing.oracle.kl import k1, k2, k3
from grpo_jax.testing.oracle.logprobs import entropy, kl_divergence, log_softmax, token_logprobs
from grpo_jax.testing.oracle.loss import grpo_loss
from grpo_jax.testing.oracle.returns import reward_with_kl
from grpo_jax.testing.oracle.surrogate import ppo_clip

__all__ = [
    "entropy",
    "group_advantage",
    "grpo_loss",
    "k1",
    "k2",
    "k3",
    "kl_divergence",
    "log_softmax",
    "ppo_clip",
    "process_advantage",
    "reward_with_kl",
    "sequence_mean",
    "token_logprobs",
    "token_mean",
]

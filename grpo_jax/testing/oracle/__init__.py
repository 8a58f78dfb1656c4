"""The mathematics once more, in float64 NumPy: slow loops written from the papers, to compare against.

Nothing here imports or imitates `grpo_jax.core`. Padding is skipped, never masked: a loop visits scored tokens only.
Rows of tokens are `[B, T]`, groups are `[G]`; callers loop over further axes.
"""

from grpo_jax.testing.oracle.advantage import (
    batch_scaled,
    centred,
    greedy_baseline,
    group_advantage,
    leave_one_out,
    length_weighted,
    mean_scaled,
    pass_at_k,
    process_advantage,
    term_advantage,
    zero_variance_rescaled,
)
from grpo_jax.testing.oracle.aggregate import constant_length, every_row, sequence_mean, sequence_sum, token_mean
from grpo_jax.testing.oracle.control import adaptive_entropy, adaptive_kl
from grpo_jax.testing.oracle.correction import banded, off_policy_mask, rejected, truncated
from grpo_jax.testing.oracle.kl import absolute, clamped_k3, k1, k2, k3, ratio_weighted_k3, sequence_weighted_k3
from grpo_jax.testing.oracle.logprobs import entropy, kl_divergence, log_softmax, token_logprobs
from grpo_jax.testing.oracle.loss import grpo_loss
from grpo_jax.testing.oracle.preference import dpo, ipo, pair_margin
from grpo_jax.testing.oracle.ratio import per_sequence, sequence_average
from grpo_jax.testing.oracle.returns import discounted_returns, gae, reward_with_kl, whiten
from grpo_jax.testing.oracle.robust import (
    exponentiated_gradient,
    group_means,
    group_robust_loss,
    project_simplex,
)
from grpo_jax.testing.oracle.shaping import soft_overlong
from grpo_jax.testing.oracle.surrogate import (
    at_or_above_quantile,
    binary_kl,
    binary_tv,
    cispo,
    covariances,
    dppo,
    geometric_mean,
    kl_cov,
    ppo_clip,
    sapo,
    two_sided_clip,
    vespo,
)
from grpo_jax.testing.oracle.value import clipped_value, explained_variance

__all__ = [
    "absolute",
    "adaptive_entropy",
    "adaptive_kl",
    "at_or_above_quantile",
    "banded",
    "batch_scaled",
    "binary_kl",
    "binary_tv",
    "centred",
    "cispo",
    "clamped_k3",
    "clipped_value",
    "constant_length",
    "covariances",
    "discounted_returns",
    "dpo",
    "dppo",
    "entropy",
    "every_row",
    "explained_variance",
    "exponentiated_gradient",
    "gae",
    "geometric_mean",
    "greedy_baseline",
    "group_advantage",
    "group_means",
    "group_robust_loss",
    "grpo_loss",
    "ipo",
    "k1",
    "k2",
    "k3",
    "kl_cov",
    "kl_divergence",
    "leave_one_out",
    "length_weighted",
    "log_softmax",
    "mean_scaled",
    "off_policy_mask",
    "pair_margin",
    "pass_at_k",
    "per_sequence",
    "ppo_clip",
    "process_advantage",
    "project_simplex",
    "ratio_weighted_k3",
    "rejected",
    "reward_with_kl",
    "sapo",
    "sequence_average",
    "sequence_mean",
    "sequence_sum",
    "sequence_weighted_k3",
    "soft_overlong",
    "term_advantage",
    "token_logprobs",
    "token_mean",
    "truncated",
    "two_sided_clip",
    "vespo",
    "whiten",
    "zero_variance_rescaled",
]

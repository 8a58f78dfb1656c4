"""The mathematics: arrays in, arrays out. README.md lists every term with its equation, its source and its tests.

Every term, preset and slot is exported here; a test holds this list to the modules.
"""

from grpo_jax.core import advantage, correction, kl, presets, surrogate
from grpo_jax.core.advantage import *
from grpo_jax.core.aggregate import ConstantLength, EveryRow, sequence_mean, sequence_sum, token_mean
from grpo_jax.core.control import AdaptiveEntropy, AdaptiveKl, mixed_reference
from grpo_jax.core.correction import *
from grpo_jax.core.kl import *
from grpo_jax.core.kl.full_vocabulary import FullVocabulary, kl_divergence
from grpo_jax.core.logprobs import TokenLogprobs, token_logits, token_logprobs
from grpo_jax.core.objective import Objective, policy_loss
from grpo_jax.core.preference import Dpo, Ipo, IpoPerToken, pair_losses, preference_loss
from grpo_jax.core.presets import *
from grpo_jax.core.ratio import per_sequence, per_token, sequence_average, sequence_average_token
from grpo_jax.core.returns import discounted_returns, gae, reward_with_kl, whiten
from grpo_jax.core.robust import (
    GroupRobust,
    exponentiated_gradient,
    group_losses,
    importance_weights,
    project_simplex,
    robust_loss,
)
from grpo_jax.core.shaping import soft_overlong
from grpo_jax.core.slots import Advantage, Aggregate, Correction, Kl, Ratio, Select, Surrogate, Value
from grpo_jax.core.surrogate import *
from grpo_jax.core.unified import gradient_weights
from grpo_jax.core.value import ClippedValue, explained_variance, value_loss

__all__ = sorted(
    [
        *(advantage.__all__ + correction.__all__ + kl.__all__ + presets.__all__ + surrogate.__all__),
        *("ConstantLength", "EveryRow", "sequence_mean", "sequence_sum", "token_mean"),
        *("AdaptiveEntropy", "AdaptiveKl", "mixed_reference", "FullVocabulary", "kl_divergence"),
        *("TokenLogprobs", "token_logits", "token_logprobs", "Objective", "policy_loss"),
        *("Dpo", "Ipo", "IpoPerToken", "pair_losses", "preference_loss"),
        *("per_sequence", "per_token", "sequence_average", "sequence_average_token"),
        *("discounted_returns", "gae", "reward_with_kl", "whiten", "soft_overlong", "gradient_weights"),
        *("GroupRobust", "exponentiated_gradient", "group_losses", "importance_weights", "project_simplex"),
        *("robust_loss", "ClippedValue", "explained_variance", "value_loss"),
        *("Advantage", "Aggregate", "Correction", "Kl", "Ratio", "Select", "Surrogate", "Value"),
    ]
)

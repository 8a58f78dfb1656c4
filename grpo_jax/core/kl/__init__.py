"""Distance of the policy from a reference: estimators on drawn tokens, and the exact sum over the vocabulary.

The slot's contract is `core.slots.Kl`. The tokens are drawn from pi, and r = pi_ref / pi (not its inverse).

    on drawn tokens   k1, k2, k3, absolute; Clamped and StraightThrough are made of them
    off policy        RatioWeighted, ImportanceWeighted: one of them times pi / pi_old
    the vocabulary    exact, a `FullVocabulary`, which no drawn token can tell
"""

from grpo_jax.core.kl.combine import Clamped, ImportanceWeighted, RatioWeighted, StraightThrough
from grpo_jax.core.kl.estimators import absolute, k1, k2, k3
from grpo_jax.core.kl.full_vocabulary import exact

__all__ = ["Clamped", "ImportanceWeighted", "RatioWeighted", "StraightThrough", "absolute", "exact", "k1", "k2", "k3"]

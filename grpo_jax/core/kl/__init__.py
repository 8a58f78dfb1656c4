"""Distance of the policy from a reference: estimators on drawn tokens, and the exact sum over the vocabulary.

The slot's contract is `(logp[..., T], ref_logp[..., T], *, ...) -> kl[..., T]`, where the tokens are drawn from pi and
r = pi_ref / pi (not its inverse). References are constants: the objective detaches them. What else a KL term needs it
declares as keyword-only parameters (`core.slots`):

    log_ratio   float [..., T]   log pi - log pi_old of each token, with its gradient

A `FullVocabulary` marks a divergence that no drawn token can tell.
"""

from grpo_jax.core.kl.combine import Clamped, RatioWeighted, Straight
from grpo_jax.core.kl.estimators import absolute, k1, k2, k3
from grpo_jax.core.kl.exact import exact

__all__ = ["Clamped", "RatioWeighted", "Straight", "absolute", "exact", "k1", "k2", "k3"]

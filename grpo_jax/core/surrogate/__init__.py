"""Surrogates: the loss of a token, given its ratio and its advantage, and whether a bound cut it.

The slot's contract, with every array of shape [..., T], is `(log_ratio, logp, advantage, *, ...) -> (loss, clipped)`.
All inputs are 0 outside the mask, and what is returned there is never read. What else a surrogate needs it declares as
keyword-only parameters (`core.slots`):

    mask       bool  [..., T]   scored tokens
    old_logp   float [..., T]   log-probabilities under the policy that sampled, a constant
    selected   bool  [..., T]   the tokens that the surrogate's own `select` picked

A surrogate that treats some tokens of a batch specially, because of how they compare with all others, has a method
`select(*, ...) -> bool[..., T]`. It runs once over the whole batch before it is cut, so that the cut does not matter,
and declares what it reads of: mask, old_logp, advantage, entropy (of the policy that sampled), key (for random
choices).
"""

from grpo_jax.core.surrogate.cispo import CispoCap, CispoClip
from grpo_jax.core.surrogate.clip import PpoClip, two_sided_clip
from grpo_jax.core.surrogate.covariance import ClipCov, KlCov, covariance
from grpo_jax.core.surrogate.divergence import Dppo, binary_kl, binary_tv
from grpo_jax.core.surrogate.entropy import EntropySelected
from grpo_jax.core.surrogate.geometric import GeometricMean
from grpo_jax.core.surrogate.score import reinforce
from grpo_jax.core.surrogate.soft import Sapo, Vespo

__all__ = [
    "CispoCap",
    "CispoClip",
    "ClipCov",
    "Dppo",
    "EntropySelected",
    "GeometricMean",
    "KlCov",
    "PpoClip",
    "Sapo",
    "Vespo",
    "binary_kl",
    "binary_tv",
    "covariance",
    "reinforce",
    "two_sided_clip",
]

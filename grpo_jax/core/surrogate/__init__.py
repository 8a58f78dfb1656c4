"""Surrogates: the loss of a token, given its ratio and its advantage, and whether a bound cut it.

The slot's contract is `core.slots.Surrogate`, and that of a surrogate's `select` is `core.slots.Select`.

    clipped ratio     PpoClip, two_sided_clip, GeometricMean
    clipped weight    CispoClip, CispoCap
    soft              Sapo, Vespo
    trust region      Dppo
    chosen tokens     ClipCov, KlCov, EntropySelected
    no old policy     reinforce
"""

from grpo_jax.core.surrogate.clip import PpoClip, two_sided_clip
from grpo_jax.core.surrogate.clipped_weight import CispoCap, CispoClip
from grpo_jax.core.surrogate.cov import ClipCov, KlCov, covariance
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

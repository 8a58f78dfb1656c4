"""Completions judged by the sets of k that they are part of."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.advantage.statistics import clean
from grpo_jax.core.checks import require_at_least
from grpo_jax.core.masking import as_float, sanitise


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassAtK:
    """The mean advantage of all sets of k completions that a completion is part of, in closed form.

    A set is worth 1 if one of its completions is correct. With N valid completions, N_pos correct and N_neg wrong, the
    worth of a set has the mean R and the deviation sqrt(R (1 - R)), and

        R     = 1 - C(N_neg, k) / C(N, k)
        q     = C(N_neg - 1, k - 1) / C(N - 1, k - 1)                  the others of a wrong one's set are wrong too
        A_pos = (1 - R) / sqrt(R (1 - R))
        A_neg = (1 - R - q) / sqrt(R (1 - R))

    and 0 where the deviation is 0 (nothing is correct, or fewer than k are wrong) or there is no set of k. The sum over
    a group is 0. With k = 1 this is `GroupNormalised(ddof=0, eps=0)` of the rewards 0 and 1.

    It is computed without a difference of close numbers, from products of k factors:

        q     = prod_{i=1..k-1} (N_neg - i) / (N - i)
        1 - R = q N_neg / N
        R     = 1 - exp sum_{i=0..k-1} log(1 - N_pos / (N - i))
        A_pos = sqrt((1 - R) / R)
        A_neg = -(N_pos / N) sqrt(q N / (N_neg R))                     as 1 - R - q = -q N_pos / N

    Gradient: none; the advantage is a step function of the rewards.

    Attributes:
      k: completions in a set.
      threshold: a completion is correct if its reward is greater.

    Raises:
      ValueError: `k` is below 1 or no whole number, or `threshold` is not finite.

    Reference: Pass@k Training, arXiv:2508.10751, analytical derivation.

    >>> PassAtK(k=2)(jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.ones(4, bool)).round(4)
    Array([ 1.    , -0.3333, -0.3333, -0.3333], dtype=float32)
    """

    k: int
    threshold: float = 0.5

    def __post_init__(self) -> None:
        require_at_least("k", self.k, 1)
        if self.k != int(self.k):
            raise ValueError(f"k must be a whole number, got {self.k}")
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be a finite number, got {self.threshold}")

    def __call__(self, reward: Float[Array, "*b G"], valid: Bool[Array, "*b G"]) -> Float[Array, "*b G"]:
        """Returns the advantage of each completion.

        Raises:
          ValueError: the group is smaller than `k`.
        """
        dtype = as_float(reward).dtype
        reward, valid = clean(reward, valid, group=self.k)
        correct = valid & (reward > self.threshold)
        N = jnp.sum(valid, axis=-1, keepdims=True).astype(dtype)
        N_pos = jnp.sum(correct, axis=-1, keepdims=True).astype(dtype)
        N_neg = N - N_pos
        defined = (self.k <= N) & (N_pos > 0) & (N_neg > 0)

        i = jnp.arange(self.k, dtype=dtype)
        left = jnp.maximum(N - i, 1.0)
        wrong = jnp.maximum(N_neg - i, 0.0) / left
        q = jnp.prod(wrong[..., 1:], axis=-1, keepdims=True)
        failed = wrong[..., :1] * q
        log_failed = jnp.sum(jnp.log1p(-jnp.minimum(N_pos / left, 1.0)), axis=-1, keepdims=True)
        R = jnp.where(defined, -jnp.expm1(log_failed), 1.0)
        A_pos = jnp.sqrt(failed / R)
        A_neg = -(N_pos / jnp.maximum(N, 1.0)) * jnp.sqrt(q * N / (jnp.maximum(N_neg, 1.0) * R))
        return sanitise(jnp.where(correct, A_pos, A_neg), valid & defined)

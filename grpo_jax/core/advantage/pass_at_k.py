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

    A set is worth 1 if one of its completions is correct, so with N valid completions, N_neg of them wrong:

        R     = 1 - C(N_neg, k) / C(N, k)                                mean over all sets of k
        sigma = sqrt(R (1 - R))                                          their deviation
        A_pos = (1 - R) / sigma
        A_neg = (1 - R - C(N_neg - 1, k - 1) / C(N - 1, k - 1)) / sigma

    and 0 where sigma is 0: nothing is correct, or fewer than k are wrong. The sum over a group is 0. With k = 1 this
    is `GroupNormalised(ddof=0, eps=0)` of the rewards 0 and 1. A group with fewer than k valid completions has
    advantage 0.

    The quotients are products of k factors, and with q = C(N_neg - 1, k - 1) / C(N - 1, k - 1) the others follow
    without a difference of close numbers: 1 - R = q N_neg / N, and 1 - R - q = -q N_pos / N.

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

        Args:
          reward: one number for each completion; NaN and infinite ones are treated as not valid.
          valid: True where the reward applies; elsewhere `reward` may hold anything.

        Returns:
          The advantage, exactly 0 where `valid` is False.

        Raises:
          TypeError: `reward` holds no floating-point numbers, or `valid` is not boolean.
          ValueError: the shapes differ, or the group is smaller than `k`.
        """
        dtype = as_float(reward).dtype
        reward, valid = clean(reward, valid, group=self.k)
        correct = valid & (reward > self.threshold)
        n = jnp.sum(valid, axis=-1, keepdims=True).astype(dtype)
        positive = jnp.sum(correct, axis=-1, keepdims=True).astype(dtype)
        negative = n - positive

        drawn = jnp.arange(self.k, dtype=dtype)
        left = jnp.maximum(n - drawn, 1.0)
        share = jnp.maximum(negative - drawn, 0.0) / left
        rest = jnp.prod(share[..., 1:], axis=-1, keepdims=True)
        fail = share[..., :1] * rest
        # R near 0 is 1 - fail with all digits: log1p adds numbers of one sign.
        log_fail = jnp.sum(jnp.log1p(-jnp.minimum(positive / left, 1.0)), axis=-1, keepdims=True)
        some = (n >= self.k) & (positive > 0) & (negative > 0)
        passed = jnp.where(some, -jnp.expm1(log_fail), 1.0)
        better = jnp.sqrt(fail / passed)
        worse = -(positive / jnp.maximum(n, 1.0)) * jnp.sqrt(rest * n / (jnp.maximum(negative, 1.0) * passed))
        return sanitise(jnp.where(correct, better, worse), valid & some)

"""Restraint on the tokens that lower the entropy most: those whose log-probability and advantage vary together."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from grpo_jax.core.checks import check_tokens, require_at_least, require_mask, require_same_shape
from grpo_jax.core.kl.estimators import absolute
from grpo_jax.core.masking import sanitise
from grpo_jax.core.surrogate.clip import PpoClip
from grpo_jax.core.surrogate.selection import check_share, largest, portion


def covariance(
    old_logp: Float[Array, "*b T"], advantage: Float[Array, "*b T"], mask: Bool[Array, "*b T"]
) -> Float[Array, "*b T"]:
    """Returns what each scored token adds to the covariance of log-probability and advantage, 0 elsewhere.

        cov_t = (log pi_old(o_t) - mean log pi_old) (A_t - mean A)

    Both means are over all scored tokens of the batch: over every axis. The paper takes the log-probabilities of the
    policy that learns; before the first update of a batch it is the policy that sampled, and both are the same.

    Args:
      old_logp: log-probabilities under the policy that sampled; padding may hold anything.
      advantage: advantage of each token.
      mask: True on scored tokens; without any, all are 0.

    Reference: The Entropy Mechanism of RL for reasoning language models, arXiv:2505.22617.

    >>> ones = jnp.ones((1, 2), bool)
    >>> covariance(jnp.array([[-1.0, -3.0]]), jnp.array([[2.0, -2.0]]), ones).tolist()
    [[2.0, 2.0]]
    """
    require_mask("mask", mask, "old_logp", old_logp)
    require_same_shape("advantage", advantage, "old_logp", old_logp)
    n = jnp.maximum(jnp.sum(mask), 1)
    logp, advantage = sanitise(old_logp, mask), sanitise(advantage, mask)
    return sanitise((logp - jnp.sum(logp) / n) * (advantage - jnp.sum(advantage) / n), mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipCov:
    """The loss of Clip-Cov: PPO's clip, and a few tokens of high covariance that do not count.

        L_t = 0                                    t in I
        L_t = -min(r A, clip(r, 1 - low, 1 + high) A)   elsewhere
        I = max(1, floor(share n)) tokens drawn uniformly from { t : lowest <= cov_t <= highest }, or all of these

    n is the number of scored tokens of the batch. `select` draws I once per batch; the paper and verl draw it at each
    update, from the covariances of then and without the tokens that PPO's clip cuts, of which there are none at
    the first update. verl leaves out the two ends of the range, which the paper includes.

    Gradient: exactly 0 on I, as `PpoClip` elsewhere. `clipped` is True on I too.

    Attributes:
      low: lower bound 1 - low; 1 or more means that there is none.
      high: upper bound 1 + high.
      share: share of the scored tokens.
      lowest: smallest covariance that may be drawn.
      highest: largest covariance that may be drawn.

    Raises:
      ValueError: `low` or `high` is negative, `share` is not in (0, 1], or `lowest` is above `highest`.

    Reference: arXiv:2505.22617, and verl's "clip_cov".

    >>> ClipCov().select.__name__, ClipCov(share=1e-3)
    ('select', ClipCov(low=0.2, high=0.2, share=0.001, lowest=1.0, highest=5.0))
    """

    low: float = 0.2
    high: float = 0.2
    share: float = 2e-4
    lowest: float = 1.0
    highest: float = 5.0

    def __post_init__(self) -> None:
        PpoClip(low=self.low, high=self.high)
        check_share(self.share)
        if not -math.inf < self.lowest <= self.highest:
            raise ValueError(f"lowest={self.lowest} must be a number <= highest={self.highest}")

    def select(
        self,
        *,
        mask: Bool[Array, "*b T"],
        old_logp: Float[Array, "*b T"],
        advantage: Float[Array, "*b T"],
        key: Key[Array, ""],
    ) -> Bool[Array, "*b T"]:
        """Returns True on the tokens that do not count."""
        cov = covariance(old_logp, advantage, mask)
        eligible = mask & (cov >= self.lowest) & (cov <= self.highest)
        count = jnp.maximum(portion(self.share, jnp.sum(mask)), 1)
        return largest(jax.random.uniform(key, jnp.shape(mask)), eligible, count)

    def __call__(
        self,
        log_ratio: Float[Array, "*b T"],
        logp: Float[Array, "*b T"],
        advantage: Float[Array, "*b T"],
        *,
        selected: Bool[Array, "*b T"],
    ) -> tuple[Float[Array, "*b T"], Bool[Array, "*b T"]]:
        """Returns the loss of each token, and True where a bound or the choice cut it."""
        check_tokens(log_ratio, logp, advantage)
        require_mask("selected", selected, "log_ratio", log_ratio)
        # An advantage of 0 is no loss, no gradient, and nothing to overflow.
        loss, clipped = PpoClip(low=self.low, high=self.high)(log_ratio, logp, jnp.where(selected, 0.0, advantage))
        return loss, clipped | selected


@dataclasses.dataclass(frozen=True, kw_only=True)
class KlCov:
    """The loss of KL-Cov: no clip, and a penalty on the few tokens of highest covariance.

        L_t = -r A + coef |log pi(o_t) - log pi_old(o_t)|      t in I
        L_t = -r A                                             elsewhere
        I = the max(1, floor(share n)) scored tokens with the largest cov_t

    n is the number of scored tokens of the batch. `select` picks I once per batch; the paper and verl pick it at each
    update, from the covariances of then.

    Gradient: -r A on `log_ratio`, and on I coef sign(logp - old_logp) on `logp`, which is 0 where both are equal:
    at the first update there is no penalty yet. `clipped` is False. A ratio may overflow to infinity, which is what
    the formula says; with A = 0 it is not exponentiated.

    Attributes:
      share: share of the scored tokens; the paper takes 2e-3 for 7B and 2e-4 for 32B.
      coef: weight of the penalty.

    Raises:
      ValueError: `share` is not in (0, 1], or `coef` is negative.

    Reference: arXiv:2505.22617, and verl's "kl_cov".

    >>> KlCov()
    KlCov(share=0.002, coef=1.0)
    """

    share: float = 2e-3
    coef: float = 1.0

    def __post_init__(self) -> None:
        check_share(self.share)
        require_at_least("coef", self.coef, 0.0)

    def select(
        self, *, mask: Bool[Array, "*b T"], old_logp: Float[Array, "*b T"], advantage: Float[Array, "*b T"]
    ) -> Bool[Array, "*b T"]:
        """Returns True on the tokens with a penalty."""
        count = jnp.maximum(portion(self.share, jnp.sum(mask)), 1)
        return largest(covariance(old_logp, advantage, mask), mask, count)

    def __call__(
        self,
        log_ratio: Float[Array, "*b T"],
        logp: Float[Array, "*b T"],
        advantage: Float[Array, "*b T"],
        *,
        old_logp: Float[Array, "*b T"],
        selected: Bool[Array, "*b T"],
    ) -> tuple[Float[Array, "*b T"], Bool[Array, "*b T"]]:
        """Returns the loss of each token; nothing is clipped."""
        check_tokens(log_ratio, logp, advantage)
        require_same_shape("old_logp", old_logp, "log_ratio", log_ratio)
        require_mask("selected", selected, "log_ratio", log_ratio)
        policy = -jnp.exp(jnp.where(advantage != 0, log_ratio, 0.0)) * advantage
        penalty = jnp.where(selected, absolute(logp, old_logp), 0.0)
        return policy + self.coef * penalty, jnp.zeros(jnp.shape(logp), bool)

"""Distances from the mean of a group, on a scale that the whole batch shares."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.advantage.statistics import centre, check_deviation, clean, differ
from grpo_jax.core.masking import masked_std, sanitise


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchScaled:
    """The reward's distance from the mean of its group, in standard deviations of the batch.

        A_g = (r_g - mean(r)) / (std + eps)     mean over the group, std over all valid rewards of the batch

    The deviation is that of the rewards themselves, not of their distances from the group means. Groups keep their
    relative weight: one that hardly differs is not blown up to unit deviation. A batch of `ddof` or fewer has
    advantage exactly 0.

    Attributes:
      ddof: 1 divides the squares by n - 1, 0 by n.
      eps: added to the standard deviation, in the units of the reward. Published values differ (TRL: 1e-4).

    Raises:
      ValueError: `ddof` or `eps` is negative.

    Reference: Part I: Tricks or Traps (Lite PPO), arXiv:2508.08221; `scale_rewards="batch"` of TRL.

    >>> reward = jnp.array([[1.0, 5.0], [5.0, 1.0]])
    >>> BatchScaled(ddof=0, eps=0.0)(reward, jnp.ones((2, 2), bool))
    Array([[-1.,  1.],
           [ 1., -1.]], dtype=float32)
    """

    ddof: int = 1
    eps: float = 1e-6

    def __post_init__(self) -> None:
        check_deviation(self.ddof, self.eps)

    def __call__(self, reward: Float[Array, "*b G"], valid: Bool[Array, "*b G"]) -> Float[Array, "*b G"]:
        """Returns the advantage of each completion."""
        reward, valid = clean(reward, valid)
        deviation = masked_std(reward.reshape(-1), valid.reshape(-1), ddof=self.ddof)
        known = deviation > 0
        return sanitise(centre(reward, valid) / jnp.where(known, deviation + self.eps, 1.0), known)


def zero_variance_rescaled(reward: Float[Array, "*b G"], valid: Bool[Array, "*b G"]) -> Float[Array, "*b G"]:
    """Returns the distance from the group mean, scaled up for groups without variance (GPG).

        A_g = alpha (r_g - mean(r)) / F_norm         F_norm = 1,  alpha = B / (B - M)

    B counts the groups of the batch that hold a valid reward, and M those among them with one distinct reward, whose
    advantages are all 0. A mean over the batch is thereby one over the groups that differ. With none, all are 0.

    Gradient: alpha times that of `centred`.

    Reference: GPG, arXiv:2504.02546. Readings differ: the paper also tries F_norm = std(r), and verl counts rewards
    that are not 0 where this counts groups whose rewards differ.

    >>> zero_variance_rescaled(jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), jnp.ones((3, 2), bool))
    Array([[ 1.5, -1.5],
           [ 0. ,  0. ],
           [ 0. ,  0. ]], dtype=float32)
    """
    reward, valid = clean(reward, valid)
    groups = jnp.sum(jnp.any(valid, axis=-1))
    with_variance = jnp.sum(differ(reward, valid))
    return centre(reward, valid) * (groups / jnp.maximum(with_variance, 1))

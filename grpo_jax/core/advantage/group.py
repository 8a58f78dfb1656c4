"""How much better than the mean of its group a completion did."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.advantage.statistics import centre, check_deviation, clean, standardise
from grpo_jax.core.masking import masked_mean, sanitise


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupNormalised:
    """The reward's distance from the mean of its group, in standard deviations (outcome supervision).

        A_g = (r_g - mean(r)) / (std(r) + eps)        mean and std over the valid entries of the group

    A group of `ddof` or fewer has no deviation, and advantage exactly 0.

    Attributes:
      ddof: 1 divides the squares by n - 1, 0 by n.
      eps: added to the standard deviation, in the units of the reward.

    Raises:
      ValueError: `ddof` or `eps` is negative.

    Reference: DeepSeekMath, arXiv:2402.03300, section 4.1.2.

    >>> GroupNormalised()(jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.ones(4, bool)).round(4)
    Array([ 1.5, -0.5, -0.5, -0.5], dtype=float32)
    """

    ddof: int = 1
    eps: float = 1e-6

    def __post_init__(self) -> None:
        check_deviation(self.ddof, self.eps)

    def __call__(self, reward: Float[Array, "*b G"], valid: Bool[Array, "*b G"]) -> Float[Array, "*b G"]:
        """Returns the advantage of each completion."""
        reward, valid = clean(reward, valid)
        return standardise(reward, valid, ddof=self.ddof, eps=self.eps)


def centred(reward: Float[Array, "*b G"], valid: Bool[Array, "*b G"]) -> Float[Array, "*b G"]:
    """Returns the reward's distance from the mean of its group, in the units of the reward (Dr. GRPO).

        A_g = r_g - mean(r)

    Gradient: dA_g/dr_h = [g = h] - 1/n.

    Reference: Understanding R1-Zero-Like Training, arXiv:2503.20783, section 3.2.

    >>> centred(jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.ones(4, bool))
    Array([ 0.75, -0.25, -0.25, -0.25], dtype=float32)
    """
    return centre(*clean(reward, valid))


def leave_one_out(reward: Float[Array, "*b G"], valid: Bool[Array, "*b G"]) -> Float[Array, "*b G"]:
    """Returns the reward's distance from the mean of the others in its group (RLOO).

        A_g = r_g - 1/(n - 1) sum_{h != g} r_h = n/(n - 1) (r_g - mean(r))

    The baseline of a completion does not depend on it, so the policy gradient is unbiased.

    Gradient: dA_g/dr_h = 1 where g = h, else -1/(n - 1).

    Raises:
      ValueError: the group is of fewer than two.

    Reference: Back to Basics, arXiv:2402.14740, section 4 (RLOO).

    >>> leave_one_out(jnp.array([3.0, 0.0, 0.0, 0.0]), jnp.ones(4, bool))
    Array([ 3., -1., -1., -1.], dtype=float32)
    """
    reward, valid = clean(reward, valid, group=2)
    count = jnp.sum(valid, axis=-1, keepdims=True)
    return centre(reward, valid) * (count / jnp.maximum(count - 1, 1))


def mean_scaled(reward: Float[Array, "*b G"], valid: Bool[Array, "*b G"]) -> Float[Array, "*b G"]:
    """Returns the reward's distance from the mean of its group, as a share of that mean (MaxRL).

        A_g = (r_g - mean(r)) / mean(r)              0 where mean(r) <= 0

    With rewards of 0 and 1, the mean over a group of A_g grad log pi_g is the mean of grad log pi over the successes,
    less that over all: a gradient of the log of the success rate, to the order that G samples allow. A group without
    success says nothing. Rewards are expected not to be negative.

    Gradient: dA_g/dr_h = [g = h]/mean - r_g/(n mean^2).

    Reference: Maximum Likelihood Reinforcement Learning, arXiv:2602.02710; published code adds a small number to the
    mean instead of treating 0 apart.

    >>> mean_scaled(jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.ones(4, bool))
    Array([ 3., -1., -1., -1.], dtype=float32)
    """
    reward, valid = clean(reward, valid)
    mean = masked_mean(reward, valid)[..., None]
    positive = mean > 0
    return sanitise(centre(reward, valid) / jnp.where(positive, mean, 1.0), positive)

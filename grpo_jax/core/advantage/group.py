"""How much better than the mean of its group a completion did."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Bool, Float

from grpo_jax.core.advantage.statistics import check_deviation, clean, standardise


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupNormalised:
    """The reward's distance from the mean of its group, in standard deviations (outcome supervision).

        A_g = (r_g - mean(r)) / (std(r) + eps)        mean and std over the valid entries of the group

    A lone sample, and a group with one distinct reward, have advantage exactly 0: they are recognised by
    max == min, because the rounding of a mean would otherwise leave a deviation that the division blows up.
    An entry that is not valid has advantage 0 and takes part in no statistic.

    Gradient: that of the formula; rewards are data, and the objective detaches the advantage.

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
        """Returns the advantage of each completion.

        Args:
          reward: one number for each completion; NaN and infinite ones are treated as not valid.
          valid: True where the reward applies; elsewhere `reward` may hold anything.

        Returns:
          The advantage, exactly 0 where `valid` is False.

        Raises:
          TypeError: `reward` holds no floating-point numbers, or `valid` is not boolean.
          ValueError: the shapes differ, or there is no axis G.
        """
        reward, valid = clean(reward, valid)
        return standardise(reward, valid, ddof=self.ddof, eps=self.eps)

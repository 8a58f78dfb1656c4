"""Advantages: rewards of a group turned into how much better than its group a completion did.

Axes: G completions of one prompt, K reasoning steps of one completion, T tokens.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real

from grpo_jax.core.checks import require_at_least, require_axes, require_integers, require_mask, require_same_shape
from grpo_jax.core.masking import as_float, masked_mean, masked_std, sanitise


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
        _check_deviation(self.ddof, self.eps)

    def __call__(self, reward: Real[Array, "*b G"], valid: Bool[Array, "*b G"]) -> Float[Array, "*b G"]:
        """Returns the advantage of each completion.

        Args:
          reward: one number for each completion; NaN and infinite ones are treated as not valid.
          valid: True where the reward applies; elsewhere `reward` may hold anything.

        Returns:
          The advantage, exactly 0 where `valid` is False.

        Raises:
          TypeError: `valid` is not boolean.
          ValueError: the shapes differ, or there is no axis G.
        """
        require_axes("reward", reward, "G")
        require_mask("valid", valid, "reward", reward)
        return _standardise(reward, valid, ddof=self.ddof, eps=self.eps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessNormalised:
    """The sum of the normalised rewards of the steps that a token contributes to (process supervision).

        R~_gk = (R_gk - mean(R)) / (std(R) + eps)     mean and std over all valid steps of the whole group
        A_gt  = sum over k with end_gk >= t of R~_gk

    `end_gk` is the index of the last token of step k. A group with one distinct step reward has advantage exactly 0.

    Gradient: that of the formula; rewards are data, and the objective detaches the advantage.

    Attributes:
      ddof: 1 divides the squares by n - 1, 0 by n.
      eps: added to the standard deviation, in the units of the reward.

    Raises:
      ValueError: `ddof` or `eps` is negative.

    Reference: DeepSeekMath, arXiv:2402.03300, section 4.1.3.

    >>> ends = jnp.array([[1, 3], [0, 2]])
    >>> good = jnp.ones((2, 2), bool)
    >>> ProcessNormalised(ddof=0, eps=0.0)(jnp.array([[1.0, 3.0], [3.0, 1.0]]), ends, good, length=4)
    Array([[ 0.,  0.,  1.,  1.],
           [ 0., -1., -1.,  0.]], dtype=float32)
    """

    ddof: int = 1
    eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_deviation(self.ddof, self.eps)

    def __call__(
        self,
        step_reward: Real[Array, "*b G K"],
        step_end: Int[Array, "*b G K"],
        step_valid: Bool[Array, "*b G K"],
        *,
        length: int,
    ) -> Float[Array, "*b G T"]:
        """Returns the advantage of each token.

        Args:
          step_reward: one number for each step; NaN and infinite ones are treated as not valid.
          step_end: index of the last token of each step; one at or beyond `length` covers every token.
          step_valid: True where there is a step; elsewhere the other two may hold anything.
          length: T, the number of tokens of a completion.

        Returns:
          The advantage of each token, 0 behind the end of the last step.

        Raises:
          TypeError: `step_valid` is not boolean or `step_end` holds no integers.
          ValueError: the shapes differ, or the axes G and K are missing.
        """
        require_axes("step_reward", step_reward, "G K")
        require_mask("step_valid", step_valid, "step_reward", step_reward)
        require_integers("step_end", step_end)
        require_same_shape("step_end", step_end, "step_reward", step_reward)
        shape = jnp.shape(step_reward)
        group = (*shape[:-2], shape[-2] * shape[-1])
        step = _standardise(step_reward.reshape(group), step_valid.reshape(group), ddof=self.ddof, eps=self.eps)
        reaches_GTK = step_end[..., None, :] >= jnp.arange(length)[:, None]
        return jnp.sum(step.reshape(shape)[..., None, :], axis=-1, where=reaches_GTK)


def _standardise(x: Real[Array, "*b N"], valid: Bool[Array, "*b N"], *, ddof: int, eps: float) -> Float[Array, "*b N"]:
    """Returns (x - mean) / (std + eps) over the valid finite entries of a row, exactly 0 where all are equal."""
    x = as_float(x)
    valid = valid & jnp.isfinite(x)
    x = sanitise(x, valid)
    highest = jnp.max(x, axis=-1, where=valid, initial=-jnp.inf)
    lowest = jnp.min(x, axis=-1, where=valid, initial=jnp.inf)
    scale = masked_std(x, valid, ddof=ddof) + eps
    spread = (highest > lowest) & (scale > 0)
    centred = x - masked_mean(x, valid)[..., None]
    return sanitise(centred / jnp.where(spread, scale, 1.0)[..., None], valid & spread[..., None])


def _check_deviation(ddof: int, eps: float) -> None:
    require_at_least("ddof", ddof, 0)
    require_at_least("eps", eps, 0.0)

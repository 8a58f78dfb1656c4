"""Rewards of reasoning steps, credited to the tokens that lead to them."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.core.advantage.statistics import check_deviation, scored, standardise
from grpo_jax.core.checks import require_axes, require_floats, require_integers, require_mask, require_same_shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessNormalised:
    """The sum of the normalised rewards of the steps that a token contributes to (process supervision).

        R~_gk = (R_gk - mean(R)) / (std(R) + eps)     mean and std over all valid steps of the whole group
        A_gt  = sum over k with end_gk >= t of R~_gk

    `end_gk` is the index of the last token of step k.

    Attributes:
      ddof: 1 divides the squares by n - 1, 0 by n.
      eps: added to the standard deviation, in the units of the reward.

    Raises:
      ValueError: `ddof` or `eps` is negative.

    Reference: DeepSeekMath, arXiv:2402.03300, section 4.1.3.

    >>> reward, valid, mask = jnp.zeros(2), jnp.ones(2, bool), jnp.ones((2, 4), bool)
    >>> steps = dict(step_end=jnp.array([[1, 3], [0, 2]]), step_valid=jnp.ones((2, 2), bool))
    >>> steps["step_reward"] = jnp.array([[1.0, 3.0], [3.0, 1.0]])
    >>> ProcessNormalised(ddof=0, eps=0.0)(reward, valid, **steps, mask=mask)
    Array([[ 0.,  0.,  1.,  1.],
           [ 0., -1., -1.,  0.]], dtype=float32)
    """

    ddof: int = 1
    eps: float = 1e-6

    def __post_init__(self) -> None:
        check_deviation(self.ddof, self.eps)

    def __call__(
        self,
        reward: Float[Array, "*b G"],
        valid: Bool[Array, "*b G"],
        *,
        step_reward: Float[Array, "*b G K"],
        step_end: Int[Array, "*b G K"],
        step_valid: Bool[Array, "*b G K"],
        mask: Bool[Array, "*b G T"],
    ) -> Float[Array, "*b G T"]:
        """Returns the advantage of each token.

        Args:
          reward: not used: the rewards are those of the steps.
          valid: False takes all steps of a completion out.
          step_reward: one number for each step; NaN and infinite ones are treated as not valid.
          step_end: index of the last token of each step; one at or beyond T covers every token.
          step_valid: True where there is a step; elsewhere the other two may hold anything.
          mask: True on scored tokens.

        Returns:
          The advantage of each token, 0 behind the end of the last step and outside the mask.

        Raises:
          TypeError: a reward holds no floating-point numbers, `step_valid`, `valid` or `mask` is not boolean, or
            `step_end` holds no integers.
          ValueError: the shapes differ, or the axes G and K are missing.
        """
        require_axes("step_reward", step_reward, "G K")
        require_floats("step_reward", step_reward)
        require_mask("step_valid", step_valid, "step_reward", step_reward)
        require_integers("step_end", step_end)
        require_same_shape("step_end", step_end, "step_reward", step_reward)
        require_same_shape("reward", reward, "step_reward[..., 0]", step_reward[..., 0])
        require_mask("valid", valid, "reward", reward)
        tokens = scored(valid, mask)
        shape = jnp.shape(step_reward)
        group = (*shape[:-2], shape[-2] * shape[-1])
        counted = step_valid & valid[..., None]
        step = standardise(step_reward.reshape(group), counted.reshape(group), ddof=self.ddof, eps=self.eps)
        reaches_GTK = step_end[..., None, :] >= jnp.arange(jnp.shape(mask)[-1])[:, None]
        reaches_GTK &= tokens[..., None]
        return jnp.sum(step.reshape(shape)[..., None, :], axis=-1, where=reaches_GTK)

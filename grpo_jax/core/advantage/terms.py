"""Several reward functions, each compared on a scale of its own."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.advantage.statistics import check_deviation, clean, standardise
from grpo_jax.core.checks import require_axes, require_floats, require_same_shape
from grpo_jax.core.masking import as_float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TermNormalised:
    """The weighted sum of the reward terms, each normalised over its group, and the sum over the batch (GDPO).

        A_gk = (r_gk - mean_k) / (std_k + eps)          mean and std of term k over the group
        S_g  = sum_k w_k A_gk
        A_g  = (S_g - mean(S)) / (std(S) + eps)         mean and std over all completions of the batch

    Normalised after they are added, a term of large variance would hide the others. A term that does not apply to a
    completion adds nothing to its sum and takes part in no statistic of that term; a completion to which none applies
    is not valid. A term with one distinct number in a group adds exactly 0.

    Attributes:
      ddof: 1 divides the squares by n - 1, 0 by n; in both steps.
      eps: added to both standard deviations; the first is in the units of the term.
      batch: False leaves out the last step, so that S is returned; it keeps the scale from growing with the number of
        terms.

    Raises:
      ValueError: `ddof` or `eps` is negative.

    Reference: GDPO, arXiv:2601.05242, section 3; verl whitens the last step over tokens instead of completions.

    >>> terms = jnp.array([[0.0, 10.0], [1.0, 10.0], [0.0, 30.0], [1.0, 30.0]])
    >>> named = dict(term_reward=terms, term_weight=jnp.array([1.0, 0.5]))
    >>> TermNormalised(ddof=0, eps=0.0, batch=False)(terms.sum(-1), jnp.ones(4, bool), **named)
    Array([-1.5,  0.5, -0.5,  1.5], dtype=float32)
    """

    ddof: int = 1
    eps: float = 1e-6
    batch: bool = True

    def __post_init__(self) -> None:
        check_deviation(self.ddof, self.eps)

    def __call__(
        self,
        reward: Float[Array, "*b G"],
        valid: Bool[Array, "*b G"],
        *,
        term_reward: Float[Array, "*b G K"],
        term_weight: Float[Array, "K"],
    ) -> Float[Array, "*b G"]:
        """Returns the advantage of each completion.

        Args:
          reward: the sum of the terms; where it is not finite the completion is not valid, else it is not used.
          valid: True where the reward applies; elsewhere the rewards may hold anything.
          term_reward: number of each reward function; NaN and infinite ones do not apply.
          term_weight: weight of each in the sum.
        """
        reward, valid = clean(reward, valid)
        require_axes("term_reward", term_reward, "G K")
        require_floats("term_reward", term_reward)
        require_same_shape("term_reward[..., 0]", term_reward[..., 0], "reward", reward)
        require_same_shape("term_weight", term_weight, "one row of term_reward", term_reward[(0,) * reward.ndim])
        applies = valid[..., None] & jnp.isfinite(term_reward)
        terms, applied = jnp.moveaxis(term_reward, -1, -2), jnp.moveaxis(applies, -1, -2)
        normal = standardise(terms, applied, ddof=self.ddof, eps=self.eps)
        total = jnp.sum(as_float(term_weight)[:, None] * normal, axis=-2)
        if not self.batch:
            return total
        anything = jnp.any(applies, axis=-1).reshape(-1)
        return standardise(total.reshape(-1), anything, ddof=self.ddof, eps=self.eps).reshape(total.shape)

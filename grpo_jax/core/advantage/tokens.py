"""Advantages of single tokens, whitened over all scored tokens of the batch."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.advantage.statistics import centre, check_fraction, clean, scored
from grpo_jax.core.checks import require_at_least, require_floats, require_same_shape
from grpo_jax.core.returns import discounted_returns, gae, whiten


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforcePlusPlus:
    """The rewards from each token on, whitened over all scored tokens of the batch (REINFORCE++).

        R_t = r_t + gamma R_t'                          t' the next scored token
        A_t = (R_t - mean(R)) / sqrt(var(R) + eps)      over all scored tokens of the batch

    It compares with the batch and not with the group, so one completion for each prompt is enough. The KL penalty is
    part of the token rewards.

    Attributes:
      gamma: discount of one scored token.
      eps: added to the variance, in the squared units of the reward.

    Raises:
      ValueError: `gamma` is not from 0 to 1, or `eps` is negative.

    Reference: REINFORCE++, arXiv:2501.03262. Readings differ on tokens of an environment inside a completion: verl
    cuts the sum there, here it is carried through (`discounted_returns`).

    >>> mask = jnp.array([[True, True], [True, False]])
    >>> token_reward = jnp.array([[1.0, 2.0], [1.0, 0.0]])
    >>> ReinforcePlusPlus()(jnp.array([3.0, 1.0]), jnp.ones(2, bool), token_reward=token_reward, mask=mask)
    Array([[ 1.,  0.],
           [-1.,  0.]], dtype=float32)
    """

    gamma: float = 1.0
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_fraction("gamma", self.gamma)
        require_at_least("eps", self.eps, 0.0)

    def __call__(
        self,
        reward: Float[Array, "*b G"],
        valid: Bool[Array, "*b G"],
        *,
        token_reward: Float[Array, "*b G T"],
        mask: Bool[Array, "*b G T"],
    ) -> Float[Array, "*b G T"]:
        """Returns the advantage of each token.

        Args:
          reward: where it is not finite the completion is not valid, else it is not used.
          valid: True where the reward applies.
          token_reward: reward of each token; one that is not finite on a scored token makes its completion not valid.
          mask: True on scored tokens.
        """
        _, valid = clean(reward, valid)
        tokens = scored(valid, mask, token_reward)
        return whiten(discounted_returns(token_reward, tokens, gamma=self.gamma), tokens, eps=self.eps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupBaselineWhitened:
    """The distance from the mean of the group at every token, whitened over all scored tokens of the batch.

        D_g  = r_g - mean(r)                                the group's mean
        A_gt = (D_g - mean(D)) / sqrt(var(D) + eps)         over all scored tokens of the batch

    The statistics run over tokens, so a long completion weighs more in them; mean(D) is 0 over completions, and over
    tokens only where lengths are equal. A group with one distinct reward has D = 0 exactly, but not A = 0, unless no
    group of the batch differs.

    Attributes:
      eps: added to the variance, in the squared units of the reward.

    Raises:
      ValueError: `eps` is negative.

    Reference: REINFORCE++, arXiv:2501.03262, its variant with a group baseline. The paper writes the batch's mean and
    deviation; verl and OpenRLHF take them over tokens, as is done here. They differ in n - 1 (verl, here) or n.

    >>> reward, mask = jnp.array([[2.0, 0.0, 1.0]]), jnp.ones((1, 3, 1), bool)
    >>> GroupBaselineWhitened()(reward, jnp.ones((1, 3), bool), mask=mask)[..., 0]
    Array([[ 1., -1.,  0.]], dtype=float32)
    """

    eps: float = 1e-8

    def __post_init__(self) -> None:
        require_at_least("eps", self.eps, 0.0)

    def __call__(
        self, reward: Float[Array, "*b G"], valid: Bool[Array, "*b G"], *, mask: Bool[Array, "*b G T"]
    ) -> Float[Array, "*b G T"]:
        """Returns the advantage of each token.

        Args:
          mask: True on scored tokens.
        """
        reward, valid = clean(reward, valid)
        tokens = scored(valid, mask)
        apart = jnp.broadcast_to(centre(reward, valid)[..., None], jnp.shape(mask))
        return whiten(apart, tokens, eps=self.eps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gae:
    """The generalised advantage estimate of a critic, whitened over all scored tokens of the batch (PPO).

        delta_t = r_t + gamma V_t' - V_t            t' the next scored token; V = 0 behind the last one
        A_t     = delta_t + gamma lam A_t'          then (A - mean(A)) / sqrt(var(A) + eps), if `whiten`

    The returns that the critic learns from are those before whitening: `returns.gae` gives both. A value that is not
    finite on a scored token is not left out: it shows in the advantage, as a critic that has diverged should.

    Attributes:
      gamma: discount of one scored token.
      lam: 0 trusts the critic after one token, 1 not at all.
      whiten: False leaves out the last step.
      eps: added to the variance when whitening, in the squared units of the reward.

    Raises:
      ValueError: `gamma` or `lam` is not from 0 to 1, or `eps` is negative.

    Reference: arXiv:1506.02438, equation 16; whitening as in arXiv:1909.08593.

    >>> named = dict(token_reward=jnp.array([[0.0, 1.0]]), value=jnp.array([[0.5, 0.25]]), mask=jnp.ones((1, 2), bool))
    >>> Gae(lam=0.0, whiten=False)(jnp.ones(1), jnp.ones(1, bool), **named)
    Array([[-0.25,  0.75]], dtype=float32)
    """

    gamma: float = 1.0
    lam: float = 1.0
    whiten: bool = True
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_fraction("gamma", self.gamma)
        check_fraction("lam", self.lam)
        require_at_least("eps", self.eps, 0.0)

    def __call__(
        self,
        reward: Float[Array, "*b G"],
        valid: Bool[Array, "*b G"],
        *,
        token_reward: Float[Array, "*b G T"],
        value: Float[Array, "*b G T"],
        mask: Bool[Array, "*b G T"],
    ) -> Float[Array, "*b G T"]:
        """Returns the advantage of each token.

        Args:
          reward: where it is not finite the completion is not valid, else it is not used.
          valid: True where the reward applies.
          token_reward: reward of each token; one that is not finite on a scored token makes its completion not valid.
          value: what the critic expects from each token on.
          mask: True on scored tokens.
        """
        _, valid = clean(reward, valid)
        require_floats("value", value)
        require_same_shape("value", value, "token_reward", token_reward)
        tokens = scored(valid, mask, token_reward)
        advantage, _ = gae(token_reward, value, tokens, gamma=self.gamma, lam=self.lam)
        return whiten(advantage, tokens, eps=self.eps) if self.whiten else advantage

    def returns(
        self, token_reward: Float[Array, "*b T"], value: Float[Array, "*b T"], mask: Bool[Array, "*b T"]
    ) -> Float[Array, "*b T"]:
        """Returns what the critic is to learn: the advantage before whitening, plus its value."""
        return gae(token_reward, value, mask, gamma=self.gamma, lam=self.lam)[1]

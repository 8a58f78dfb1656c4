"""Rewards of single tokens, and what they add up to.

A token outside the mask (an environment wrote it, or it is padding) is no step of the policy: what is carried from
right to left passes it unchanged, and no discount is taken for it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.checks import require_axes, require_mask, require_same_shape
from grpo_jax.core.masking import as_float, sanitise


def reward_with_kl(
    reward: Float[Array, "*b"], kl: Float[Array, "*b T"], mask: Bool[Array, "*b T"], *, coef: float
) -> Float[Array, "*b T"]:
    """Returns the reward of each token: a KL penalty everywhere, the score on the last scored token.

        R_t = -coef kl_t + [t is the last scored token] reward

    The sum over T is the penalised reward of a completion. A reward that is NaN stays NaN there.

    Gradient: that of the formula; a reward is data, so the caller detaches `kl`.

    Args:
      reward: the score of each completion.
      kl: KL term of each token, as of `k1`; padding may hold anything.
      mask: True on scored tokens; a row without any gives 0 everywhere.
      coef: weight of the penalty.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: the shapes do not fit.

    Reference: InstructGPT, arXiv:2203.02155, section 3.5.

    >>> reward_with_kl(jnp.array(1.0), jnp.array([0.5, 0.25, jnp.nan]), jnp.array([True, True, False]), coef=0.5)
    Array([-0.25 ,  0.875,  0.   ], dtype=float32)
    """
    require_mask("mask", mask, "kl", kl)
    if jnp.shape(reward) != jnp.shape(kl)[:-1]:
        raise ValueError(f"reward has shape {jnp.shape(reward)}, but kl has shape {jnp.shape(kl)}; reward lacks only T")
    position = jnp.arange(jnp.shape(kl)[-1])
    last = jnp.max(jnp.where(mask, position, -1), axis=-1, keepdims=True, initial=-1)
    score = jnp.where(position == last, as_float(reward)[..., None], 0.0)
    return score - coef * sanitise(kl, mask)


def discounted_returns(
    token_reward: Float[Array, "*b T"], mask: Bool[Array, "*b T"], *, gamma: float
) -> Float[Array, "*b T"]:
    """Returns the discounted sum of the rewards from each token on.

        R_t = r_t + gamma R_t'                  t' the next scored token; R = 0 behind the last one

    Gradient: gamma^n on the reward n scored tokens later.

    Args:
      token_reward: reward of each token; outside the mask it may hold anything.
      mask: True on scored tokens; the result is 0 elsewhere.
      gamma: discount of one scored token.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: the shapes differ, or there is no axis T.

    Trainers differ in the middle of a row: some let a position outside the mask cut the sum off, as behind an end
    token. Here the reward of an answer reaches what came before the environment's reply.

    >>> mask = jnp.array([True, False, True, False])
    >>> discounted_returns(jnp.array([1.0, jnp.nan, 4.0, jnp.nan]), mask, gamma=0.5)
    Array([3., 0., 4., 0.], dtype=float32)
    """
    return gae(token_reward, jnp.zeros_like(token_reward), mask, gamma=gamma, lam=1.0)[0]


def gae(
    token_reward: Float[Array, "*b T"],
    value: Float[Array, "*b T"],
    mask: Bool[Array, "*b T"],
    *,
    gamma: float,
    lam: float,
) -> tuple[Float[Array, "*b T"], Float[Array, "*b T"]]:
    """Returns the generalised advantage estimate of each token, and the returns that the critic learns from.

        delta_t = r_t + gamma V_t' - V_t        t' the next scored token; V = A = 0 behind the last one
        A_t     = delta_t + gamma lam A_t'
        R_t     = A_t + V_t

    Gradient: that of the formula, in both inputs; the caller detaches `value`.

    Args:
      token_reward: reward of each token; outside the mask it may hold anything.
      value: what the critic expects from each token on; outside the mask it may hold anything.
      mask: True on scored tokens; both results are 0 elsewhere.
      gamma: discount of one scored token.
      lam: 0 trusts the critic after one token, 1 not at all.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: the shapes differ, or there is no axis T.

    Reference: arXiv:1506.02438, equation 16.

    >>> advantage, returns = gae(jnp.array([0.0, 1.0]), jnp.array([0.5, 0.25]), jnp.ones(2, bool), gamma=1.0, lam=0.0)
    >>> advantage, returns
    (Array([-0.25,  0.75], dtype=float32), Array([0.25, 1.  ], dtype=float32))
    """
    require_axes("token_reward", token_reward, "T")
    require_mask("mask", mask, "token_reward", token_reward)
    require_same_shape("value", value, "token_reward", token_reward)
    reward, value = sanitise(token_reward, mask), sanitise(value, mask)

    def step(
        later: tuple[jax.Array, jax.Array], now: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        later_advantage, later_value = later
        reward_b, value_b, mask_b = now
        delta = reward_b + gamma * later_value - value_b
        advantage = jnp.where(mask_b, delta + gamma * lam * later_advantage, later_advantage)
        return (advantage, jnp.where(mask_b, value_b, later_value)), advantage

    nothing = jnp.zeros(jnp.shape(mask)[:-1], jnp.result_type(reward, value))
    by_time = tuple(jnp.moveaxis(x, -1, 0) for x in (reward, value, mask))
    _, advantage = jax.lax.scan(step, (nothing, nothing), by_time, reverse=True)
    advantage = sanitise(jnp.moveaxis(advantage, 0, -1), mask)
    return advantage, advantage + value


def whiten(
    x: Float[Array, "*b T"], mask: Bool[Array, "*b T"], *, eps: float = 1e-8, centre: bool = True
) -> Float[Array, "*b T"]:
    """Returns `x` with mean 0 and variance 1 over all scored entries of all rows, 0 outside the mask.

        (x - mean) / sqrt(var + eps)            var divides by n - 1;  `centre=False` adds the mean again

    Where all scored entries are equal, their distance from the mean is exactly 0.

    Gradient: that of the formula, and that of the mean alone where all are equal.

    Args:
      x: any numbers; outside the mask it may hold anything.
      mask: True on scored entries.
      eps: added to the variance, in the squared units of `x`.
      centre: False keeps the mean as it was.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: the shapes differ.

    Trainers differ: the variance divides by n - 1 or by n, and `eps` is added or is a lower bound.

    Reference: the whitening of arXiv:1909.08593, with `centre=False` for rewards and True for advantages.

    >>> whiten(jnp.array([[1.0, 2.0], [3.0, jnp.nan]]), jnp.array([[True, True], [True, False]]))
    Array([[-1.,  0.],
           [ 1.,  0.]], dtype=float32)
    """
    require_mask("mask", mask, "x", x)
    x = sanitise(x, mask)
    count = jnp.sum(mask)
    mean = jnp.sum(x) / jnp.maximum(count, 1)
    away = sanitise(x - mean, mask & ~all_equal(x, mask))
    variance = jnp.sum(away**2) / jnp.maximum(count - 1, 1) + eps
    away = away / jnp.sqrt(jnp.where(variance > 0, variance, 1.0))
    return away if centre else sanitise(away + mean, mask)


def all_equal(x: Float[Array, "*b"], mask: Bool[Array, "*b"]) -> Bool[Array, ""]:
    """Returns whether the scored entries of all rows are one number, which no rounding of a mean can hide.

    NaN equals nothing, itself included, so it is not taken for a constant.

    >>> all_equal(jnp.array([0.1, 0.1, 7.0]), jnp.array([True, True, False]))
    Array(True, dtype=bool)
    """
    highest = jnp.max(x, where=mask, initial=-jnp.inf)
    return (highest == jnp.min(x, where=mask, initial=jnp.inf)) | ~jnp.any(mask)

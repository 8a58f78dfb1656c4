"""A trust region in the divergence of the two policies, where PPO's clip is one in their ratio."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.checks import check_tokens, require_at_least, require_same_shape
from grpo_jax.core.naming import PrintsByValue

Divergence = Callable[[Float[Array, "*b T"], Float[Array, "*b T"]], Float[Array, "*b T"]]


def binary_tv(logp: Float[Array, "*b T"], old_logp: Float[Array, "*b T"]) -> Float[Array, "*b T"]:
    """Returns the total variation between the policies, with all tokens but the drawn one taken as one.

        D = |pi(o_t) - pi_old(o_t)|

    It bounds the total variation over the vocabulary from below.

    Reference: Rethinking the Trust Region in LLM Reinforcement Learning (DPPO), arXiv:2602.04879.

    >>> print(f"{binary_tv(jnp.log(0.75), jnp.log(0.5)):.2f}")
    0.25
    """
    return jnp.abs(jnp.exp(logp) - jnp.exp(old_logp))


def binary_kl(logp: Float[Array, "*b T"], old_logp: Float[Array, "*b T"]) -> Float[Array, "*b T"]:
    """Returns the KL divergence of the new policy from the old, with all tokens but the drawn one taken as one.

        D = mu log(mu / pi) + (1 - mu) log((1 - mu) / (1 - pi))               mu = pi_old(o_t), pi = pi(o_t)

    It bounds KL(mu || pi) over the vocabulary from below. log(1 - p) is computed from log p without loss near 1. A
    certain old token (mu = 1) leaves -log pi, and a token that became certain gives infinity.

    Reference: DPPO, arXiv:2602.04879. verl adds 1e-8 to 1 - mu and 1 - pi.

    >>> print(f"{binary_kl(jnp.log(0.75), jnp.log(0.5)):.4f}")
    0.1438
    """
    others = -jnp.expm1(old_logp)
    uncertain = others > 0
    change = jnp.where(uncertain, _log1mexp(old_logp) - _log1mexp(logp), 0.0)
    return jnp.exp(old_logp) * (old_logp - logp) + jnp.where(uncertain, others * change, 0.0)


def _log1mexp(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Returns log(1 - exp(x)) for x <= 0, and -inf for a rounded x above 0."""
    x = jnp.minimum(x, 0.0)
    return jnp.where(x > -0.6931472, jnp.log(-jnp.expm1(x)), jnp.log1p(-jnp.exp(x)))


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Dppo(PrintsByValue):
    """The loss of DPPO: the plain surrogate, without the tokens that would leave the trust region further.

        L = -M r A,   M = 0 where D > limit and ( A > 0 and r > 1, or A < 0 and r < 1 ),   1 elsewhere

    D is the divergence of the two policies at the token, from their log-probabilities; r = exp(log_ratio).

    Gradient: -r A on `log_ratio` where M = 1, at D = limit included; exactly 0, value and gradient, where M = 0. None
    through D. A ratio may overflow to infinity, which is what the formula says; a masked one is not exponentiated.

    Attributes:
      limit: the largest divergence at which a token may still move away, in the units of `divergence`.
      divergence: `(logp[..., T], old_logp[..., T]) -> [..., T]`: `binary_tv` or `binary_kl`.

    Raises:
      ValueError: `limit` is negative.

    Reference: DPPO, arXiv:2602.04879. verl's "dppo_tv" and "dppo_kl" have the same mask, and -sg(min(r, 20)) A log pi
    in place of -r A: the same gradient up to r = 20, another value.

    >>> logp, old_logp = jnp.log(jnp.array([0.75, 0.012])), jnp.log(jnp.array([0.5, 0.01]))
    >>> loss, clipped = Dppo(limit=0.1)(logp - old_logp, logp, jnp.ones(2), old_logp=old_logp)
    >>> [f"{x:.2f}" for x in loss.tolist()], clipped.tolist()
    (['0.00', '-1.20'], [True, False])
    """

    limit: float
    divergence: Divergence = binary_tv

    def __post_init__(self) -> None:
        require_at_least("limit", self.limit, 0.0)

    def __call__(
        self,
        log_ratio: Float[Array, "*b T"],
        logp: Float[Array, "*b T"],
        advantage: Float[Array, "*b T"],
        *,
        old_logp: Float[Array, "*b T"],
    ) -> tuple[Float[Array, "*b T"], Bool[Array, "*b T"]]:
        """Returns the loss of each token, and True where the mask took it."""
        check_tokens(log_ratio, logp, advantage)
        require_same_shape("old_logp", old_logp, "log_ratio", log_ratio)
        away = ((advantage > 0) & (log_ratio > 0)) | ((advantage < 0) & (log_ratio < 0))
        masked = away & (self.divergence(logp, old_logp) > self.limit)
        live = (advantage != 0) & ~masked
        return jnp.where(live, -jnp.exp(jnp.where(live, log_ratio, 0.0)) * advantage, 0.0), masked

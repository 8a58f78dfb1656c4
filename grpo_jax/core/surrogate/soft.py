"""Soft trust regions: the weight of a token fades as its ratio, or its sequence's, leaves 1. Nothing is cut."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.checks import check_tokens, require_at_least, require_mask
from grpo_jax.core.masking import sanitise

# exp(-100) is 0 in float32, and lost beside 1 in float64.
_SATURATION = 100.0
# exp(20) is 5e8: with any decay the weight of a sequence is 0 long before.
_LARGEST_LOG_WEIGHT = 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sapo:
    """The loss of SAPO: a sigmoid gate in place of the clip.

        L = -f(r) A,   f(r) = (4 / tau) sigmoid( tau (r - 1) )               r = exp(log_ratio)
        tau = positive where A > 0, negative elsewhere

    Gradient: dL/dlog_ratio = -4 p (1 - p) r A with p = sigmoid(tau (r - 1)); at r = 1 it is -A, as without a gate.
    Where tau (r - 1) > 100, p is 1 in any precision: f is 4 / tau there and the gradient exactly 0, so that no ratio
    overflows. `logp` is not used, and `clipped` is False. `advantage` is to be detached by the caller.

    Attributes:
      positive: temperature for A > 0; a larger one fades faster.
      negative: temperature for A < 0.

    Raises:
      ValueError: a temperature is not a finite number above 0.

    Reference: SAPO, arXiv:2511.20347, equations 5 to 7. At A = 0 the loss is 0, whichever temperature is read there.

    >>> loss, _ = Sapo()(jnp.log(jnp.array([1.0, 3.0])), jnp.zeros(2), jnp.ones(2))
    >>> [f"{x:.3f}" for x in loss.tolist()]
    ['-2.000', '-3.523']
    """

    positive: float = 1.0
    negative: float = 1.05

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            value = getattr(self, name)
            if not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be a finite number > 0, got {value}")

    def __call__(
        self, log_ratio: Float[Array, "*b T"], logp: Float[Array, "*b T"], advantage: Float[Array, "*b T"]
    ) -> tuple[Float[Array, "*b T"], Bool[Array, "*b T"]]:
        """Returns the loss of each token; nothing is clipped."""
        check_tokens(log_ratio, logp, advantage)
        better = advantage > 0
        tau = jnp.where(better, self.positive, self.negative)
        ceiling = jnp.where(better, math.log1p(_SATURATION / self.positive), math.log1p(_SATURATION / self.negative))
        saturated = log_ratio > ceiling
        x = jnp.where(saturated, _SATURATION, tau * jnp.expm1(jnp.where(saturated, 0.0, log_ratio)))
        # 1 - sigmoid(-x) keeps the digits of a gradient near 0 that sigmoid(x) loses beside 1.
        right = x > 0
        tail = jax.nn.sigmoid(jnp.where(right, -x, x))
        gate = jnp.where(right, 1.0 - tail, tail) * (4.0 / tau)
        return -gate * advantage, jnp.zeros(jnp.shape(logp), bool)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vespo:
    """The loss of VESPO: each token weighs by how far the policy moved on the whole sequence.

        L = -sg(phi(w)) A log pi(o_t),   phi(w) = w^k exp(lambda (1 - w)),   log w = sum_u m_u log_ratio_u
        (k, lambda) = the positive ones where A > 0, the negative ones elsewhere

    phi is 1 at w = 1, largest at w = k / lambda, and falls to 0 on both sides. It is computed in log space. log w is
    bounded by 20 from above, where any decay has made phi 0. TRL bounds it to [log(1e-8), 20], and each token's
    log-ratio to [-20, 20] before the sum; the lower bound holds phi at 2e-15 in place of 0 (default parameters).

    The sum is over per-token log-ratios: use it with `ratio=per_token`.

    Gradient: -phi(w) A on `logp`; none through w: the stop-gradient sg is the paper's. `clipped` is False.
    `advantage` is to be detached by the caller.

    Attributes:
      k_positive: power for A > 0.
      lambda_positive: decay for A > 0.
      k_negative: power for A < 0.
      lambda_negative: decay for A < 0.

    Raises:
      ValueError: a parameter is negative.

    Reference: VESPO, arXiv:2602.10693; defaults as in TRL's loss_type="vespo".

    >>> log_ratio = jnp.log(jnp.array([[1.0, 1.0], [2.0, 0.25]]))
    >>> loss, _ = Vespo()(log_ratio, -jnp.ones((2, 2)), jnp.ones((2, 2)), mask=jnp.ones((2, 2), bool))
    >>> [f"{x:.3f}" for x in loss[:, 0].tolist()]
    ['1.000', '1.120']
    """

    k_positive: float = 2.0
    lambda_positive: float = 3.0
    k_negative: float = 3.0
    lambda_negative: float = 2.0

    def __post_init__(self) -> None:
        for name in ("k_positive", "lambda_positive", "k_negative", "lambda_negative"):
            require_at_least(name, getattr(self, name), 0.0)

    def __call__(
        self,
        log_ratio: Float[Array, "*b T"],
        logp: Float[Array, "*b T"],
        advantage: Float[Array, "*b T"],
        *,
        mask: Bool[Array, "*b T"],
    ) -> tuple[Float[Array, "*b T"], Bool[Array, "*b T"]]:
        """Returns the loss of each token; nothing is clipped."""
        check_tokens(log_ratio, logp, advantage)
        require_mask("mask", mask, "log_ratio", log_ratio)
        total = jnp.sum(sanitise(log_ratio, mask), axis=-1, keepdims=True)
        log_weight = jnp.minimum(total, _LARGEST_LOG_WEIGHT)
        power = jnp.where(advantage > 0, self.k_positive, self.k_negative)
        decay = jnp.where(advantage > 0, self.lambda_positive, self.lambda_negative)
        phi = jax.lax.stop_gradient(jnp.exp(power * log_weight - decay * jnp.expm1(log_weight)))
        return -phi * advantage * logp, jnp.zeros(jnp.shape(logp), bool)

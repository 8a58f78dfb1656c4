"""The geometric mean of the clipped ratios of a sequence."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.checks import check_tokens, require_at_least, require_mask
from grpo_jax.core.masking import masked_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeometricMean:
    """The loss of GMPO: one ratio per sequence, the geometric mean of its clipped token ratios.

        L_t = -exp( (1/|o|) sum_u m_u s'_u ) A_t               s = log_ratio
        A_u > 0:  s'_u = min(s_u, high)
        A_u < 0:  s'_u = max(s_u, -low)
        A_u = 0:  s'_u = 0

    The bounds are in log space: a ratio stays within [exp(-low), exp(high)], on the side that its advantage pushes
    to. The paper has one advantage per sequence; where tokens differ, each is bounded by its own sign, and one
    without a sign counts as ratio 1, as in verl. Every scored token carries the same ratio, so that `sequence_mean`
    gives the paper's one term per sequence.

    The mean is over per-token log-ratios: use it with `ratio=per_token`.

    Gradient: with rho = exp(mean s'), dL_t/ds_u = -rho A_t / |o| while no bound acts on u, at the bound itself
    included, and exactly 0 beyond it; so sum_t L_t has -rho A on each such token of a sequence with one advantage.
    `logp` is not used. `advantage` is to be detached by the caller.

    Attributes:
      low: lower bound on the log-ratio, -low.
      high: upper bound on the log-ratio.

    Raises:
      ValueError: `low` or `high` is negative.

    Reference: GMPO, arXiv:2507.20673, clipped within (e^-0.4, e^0.4).

    >>> log_ratio, ones = jnp.array([[0.2, 1.0]]), jnp.ones((1, 2))
    >>> loss, clipped = GeometricMean()(log_ratio, log_ratio, ones, mask=ones > 0)
    >>> [f"{x:.4f}" for x in loss[0].tolist()], clipped.tolist()
    (['-1.3499', '-1.3499'], [[False, True]])
    """

    low: float = 0.4
    high: float = 0.4

    def __post_init__(self) -> None:
        require_at_least("low", self.low, 0.0)
        require_at_least("high", self.high, 0.0)

    def __call__(
        self,
        log_ratio: Float[Array, "*b T"],
        logp: Float[Array, "*b T"],
        advantage: Float[Array, "*b T"],
        *,
        mask: Bool[Array, "*b T"],
    ) -> tuple[Float[Array, "*b T"], Bool[Array, "*b T"]]:
        """Returns the loss of each token, and True where a bound replaced its ratio."""
        check_tokens(log_ratio, logp, advantage)
        require_mask("mask", mask, "log_ratio", log_ratio)
        better, worse = mask & (advantage > 0), mask & (advantage < 0)
        above = better & (log_ratio > self.high)
        below = worse & (log_ratio < -self.low)
        live = (better | worse) & ~(above | below)
        bound = jnp.where(above, self.high, jnp.where(below, -self.low, 0.0))
        mean = masked_mean(jnp.where(live, log_ratio, bound), mask)[..., None]
        # A token without an advantage has no loss, even where the mean would overflow.
        return -jnp.exp(jnp.where(better | worse, mean, 0.0)) * advantage, above | below

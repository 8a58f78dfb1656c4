"""The clipped importance weight: the bound acts on the weight of a token's gradient, and no token loses it."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.checks import check_tokens, require_at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class CispoClip:
    """The loss of CISPO, with a weight bounded on both sides.

        L = -sg( clip(r, 1 - low, 1 + high) ) A log pi(o_t)               r = exp(log_ratio)

    The bounds are compared in log space, so a weight beyond them is never exponentiated.

    Gradient: -clip(r, 1 - low, 1 + high) A on `logp`, at every token, whatever the bound does; none on `log_ratio`:
    the stop-gradient sg is the paper's. `advantage` is to be detached by the caller.

    Attributes:
      low: lower bound 1 - low; 1 or more means that there is none, which is how the paper trains.
      high: upper bound 1 + high. The paper tunes it and does not print it.

    Raises:
      ValueError: `low` or `high` is negative.

    Reference: MiniMax-M1, arXiv:2506.13585, equations 4 and 5; verl reads it so. `CispoCap` is the other reading,
    whose bound is the weight itself.

    >>> log_ratio = jnp.log(jnp.array([0.5, 1.0, 8.0]))
    >>> loss, clipped = CispoClip(low=0.25, high=3.0)(log_ratio, -jnp.ones(3), jnp.ones(3))
    >>> [f"{x:.2f}" for x in loss.tolist()], clipped.tolist()
    (['0.75', '1.00', '4.00'], [True, False, True])
    """

    low: float = 1.0
    high: float

    def __post_init__(self) -> None:
        require_at_least("low", self.low, 0.0)
        require_at_least("high", self.high, 0.0)

    def __call__(
        self, log_ratio: Float[Array, "*b T"], logp: Float[Array, "*b T"], advantage: Float[Array, "*b T"]
    ) -> tuple[Float[Array, "*b T"], Bool[Array, "*b T"]]:
        """Returns the loss of each token, and True where a bound replaced its weight."""
        floor = math.log1p(-self.low) if self.low < 1.0 else -math.inf
        return _weighted(log_ratio, logp, advantage, floor, math.log1p(self.high))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CispoCap:
    """The loss of CISPO, with a weight bounded from above by its own value.

        L = -sg( min(r, cap) ) A log pi(o_t)               r = exp(log_ratio)

    It equals `CispoClip(low=1.0, high=cap - 1)` for cap >= 1.

    Gradient: -min(r, cap) A on `logp`, at every token; none on `log_ratio`: the stop-gradient sg is the paper's.
    `advantage` is to be detached by the caller.

    Attributes:
      cap: the largest weight.

    Raises:
      ValueError: `cap` is not a finite number above 0.

    Reference: ScaleRL, arXiv:2510.13786, whose truncation is min(r, cap); TRL's loss_type="cispo", where cap is
    epsilon_high and 5 the value it documents.

    >>> loss, clipped = CispoCap(cap=5.0)(jnp.log(jnp.array([0.5, 8.0])), -jnp.ones(2), jnp.ones(2))
    >>> [f"{x:.2f}" for x in loss.tolist()], clipped.tolist()
    (['0.50', '5.00'], [False, True])
    """

    cap: float = 5.0

    def __post_init__(self) -> None:
        if not 0.0 < self.cap < math.inf:
            raise ValueError(f"cap must be a finite number > 0, got {self.cap}")

    def __call__(
        self, log_ratio: Float[Array, "*b T"], logp: Float[Array, "*b T"], advantage: Float[Array, "*b T"]
    ) -> tuple[Float[Array, "*b T"], Bool[Array, "*b T"]]:
        """Returns the loss of each token, and True where the bound replaced its weight."""
        return _weighted(log_ratio, logp, advantage, -math.inf, math.log(self.cap))


def _weighted(
    log_ratio: Float[Array, "*b T"],
    logp: Float[Array, "*b T"],
    advantage: Float[Array, "*b T"],
    floor: float,
    ceiling: float,
) -> tuple[Float[Array, "*b T"], Bool[Array, "*b T"]]:
    """Returns -sg(exp(clip(log_ratio))) A logp, and where the clip acted."""
    check_tokens(log_ratio, logp, advantage)
    weight = jax.lax.stop_gradient(jnp.exp(jnp.clip(log_ratio, floor, ceiling)))
    return -weight * advantage * logp, (log_ratio < floor) | (log_ratio > ceiling)

"""The clipped surrogate of PPO and its bounds."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.checks import check_tokens, require_at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoClip:
    """The clipped surrogate of PPO, with separate bounds and the optional third one of dual-clip PPO.

        L = -min(r A, clip(r, 1 - low, 1 + high) A)               r = exp(log_ratio)
        with `dual` = c, where A < 0:   L = -max(min(r A, clip(r, 1 - low, 1 + high) A), c A)

    Written by the sign of A, a bound acts on one side only:

        A > 0:  L = -min(r, 1 + high) A
        A < 0:  L = -max(r, 1 - low) A, or with `dual` -min(max(r, 1 - low), c) A
        A = 0:  L = 0, and nothing is clipped

    A ratio that a bound cuts is never exponentiated (`clipped_ratio`). With A < 0 and no `dual`, nothing bounds a large
    one: it may overflow to infinity, which is what the formula says.

    Gradient: dL/dlog_ratio = -r A while no bound acts, at the bound itself included, and exactly 0 beyond it.
    `logp` is not used. `advantage` is to be detached by the caller.

    Attributes:
      low: lower bound 1 - low; 1 or more means that there is none, as no ratio is below 0.
      high: upper bound 1 + high.
      dual: bound on the ratio of tokens with negative advantage; None for none.

    Raises:
      ValueError: `low` or `high` is negative, or `dual` is not above 1.

    References: PPO, arXiv:1707.06347, equation 7; dual clip, arXiv:1912.09729, equation 5; separate bounds,
    DAPO, arXiv:2503.14476.

    >>> log_ratio = jnp.log(jnp.array([1.5, 1.5, 0.5, 0.5]))
    >>> loss, clipped = PpoClip(low=0.2, high=0.2)(log_ratio, log_ratio, jnp.array([1.0, -1.0, 1.0, -1.0]))
    >>> [f"{x:.2f}" for x in loss.tolist()], clipped.tolist()
    (['-1.20', '1.50', '-0.50', '0.80'], [True, False, False, True])
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None

    def __post_init__(self) -> None:
        require_at_least("low", self.low, 0.0)
        require_at_least("high", self.high, 0.0)
        if self.dual is not None and not 1.0 < self.dual < math.inf:
            raise ValueError(f"dual must be a finite number > 1 or None, got {self.dual}")

    def __call__(
        self, log_ratio: Float[Array, "*b T"], logp: Float[Array, "*b T"], advantage: Float[Array, "*b T"]
    ) -> tuple[Float[Array, "*b T"], Bool[Array, "*b T"]]:
        """Returns the loss of each token, and True where a bound replaced its ratio."""
        check_tokens(log_ratio, logp, advantage)
        good, bad = advantage > 0, advantage < 0
        # ratio = min(r, 1 + high) where A > 0, and min(max(r, 1 - low), dual) where A < 0.
        lowest = jnp.where(bad, log_bound(-self.low), -math.inf)
        highest = jnp.where(good, log_bound(self.high), math.inf if self.dual is None else math.log(self.dual))
        ratio, clipped = clipped_ratio(log_ratio, lowest, highest, where=good | bad)
        return -ratio * advantage, clipped


def log_bound(change: float) -> float:
    """Returns log(1 + change), and -infinity, which bounds nothing, for a change of -1 or less.

    >>> log_bound(0.0), log_bound(-10.0)
    (0.0, -inf)
    """
    return math.log1p(change) if change > -1.0 else -math.inf


def clipped_ratio(
    log_ratio: Float[Array, "*b T"],
    lowest: Float[Array, "*b T"],
    highest: Float[Array, "*b T"],
    *,
    where: Bool[Array, "*b T"],
) -> tuple[Float[Array, "*b T"], Bool[Array, "*b T"]]:
    """Returns exp(log_ratio) within [exp(lowest), exp(highest)], and True where a bound replaced it.

        ratio = exp(min(max(log_ratio, lowest), highest)) where `where`,      1 elsewhere, which is not clipped

    The bounds are compared in log space and the exponent is chosen before `exp`, so neither a ratio that is cut nor one
    that is not asked for is exponentiated: it overflows neither in value nor in gradient.

    Gradient: the ratio itself on `log_ratio` within the bounds, which belong to the interval, and exactly 0 elsewhere.

    Args:
      log_ratio: log(pi / pi_old) of each token.
      lowest: log of the lower bound; -infinity for none.
      highest: log of the upper bound; infinity for none.
      where: False where the ratio does not matter.

    >>> log_ratio, low, high = jnp.array([-1.0, 0.0, 900.0, 900.0]), jnp.full(4, -0.5), jnp.zeros(4)
    >>> ratio, clipped = clipped_ratio(log_ratio, low, high, where=jnp.array([True, True, True, False]))
    >>> [f"{r:.4f}" for r in ratio.tolist()], clipped.tolist()
    (['0.6065', '1.0000', '1.0000', '1.0000'], [True, False, True, False])
    """
    below, above = where & (log_ratio < lowest), where & (log_ratio > highest)
    free = where & ~(below | above)
    bound = jnp.where(below, lowest, jnp.where(above, highest, 0.0))
    return jnp.exp(jnp.where(free, log_ratio, bound)), below | above


def two_sided_clip(*, low: float, high: float, delta: float) -> PpoClip:
    """Returns the two-sided clip: PPO's, whose ratio is bounded by delta where the advantage is negative.

        L = -min( min(r, delta) A, clip(r, 1 - low, 1 + high) A )

    With delta >= 1 + high that is dual-clip PPO with c = delta. For A > 0 the outer bound 1 + high acts first; for
    A < 0 the loss is -max(min(r, delta), clip(r)) A = -min(max(r, 1 - low), delta) A. With a smaller delta the two
    would differ, so it is refused.

    Gradient: as `PpoClip`.

    Args:
      low: lower bound 1 - low.
      high: upper bound 1 + high.
      delta: bound on the ratio of tokens with negative advantage.

    Raises:
      ValueError: `low` or `high` is negative, or `delta` is below 1 + high, or not above 1, or not finite.

    Reference: INTELLECT-2, arXiv:2505.07291; `delta` in TRL's GRPOConfig.

    >>> two_sided_clip(low=0.2, high=0.2, delta=4.0)
    PpoClip(low=0.2, high=0.2, dual=4.0)
    """
    require_at_least("high", high, 0.0)
    if not max(1.0 + high, math.nextafter(1.0, 2.0)) <= delta < math.inf:
        raise ValueError(
            f"delta must be a finite number > 1 and >= 1 + high, got delta={delta} with high={high}; a smaller one "
            "would cut ratios that the clip allows"
        )
    return PpoClip(low=low, high=high, dual=delta)

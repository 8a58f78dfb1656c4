"""Importance weights for the gap between sampler and trainer, truncated from above or cut to a band."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp

from grpo_jax.core.checks import require_at_least, require_mask
from grpo_jax.core.masking import sanitise
from grpo_jax.core.slots import Mask, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenTruncated:
    """The importance weight of each token, truncated from above (TIS).

        weight_t = min(pi_old(o_t) / mu(o_t), cap)        keep = mask

    Only the upper end is cut: a token that the trainer finds less likely than the sampler did keeps its small weight.
    The minimum is taken in log space, so a ratio beyond the cap is never exponentiated.

    Attributes:
      cap: largest weight.

    Raises:
      ValueError: `cap` is not a finite number above 0.

    Reference: Yao et al. 2025, Your Efficient RL Framework Secretly Brings You Off-Policy RL Training,
    https://fengyao.notion.site/off-policy-rl.

    >>> weight, keep = TokenTruncated(cap=2.0)(jnp.log(jnp.array([0.5, 1.5, 8.0])), jnp.ones(3, bool))
    >>> [f"{w:.2f}" for w in weight.tolist()], keep.tolist()
    (['0.50', '1.50', '2.00'], [True, True, True])
    """

    cap: float = 2.0

    def __post_init__(self) -> None:
        _require_cap(self.cap)

    def __call__(self, log_gap: Tokens, mask: Mask) -> tuple[Tokens, Mask]:
        """Returns the weight of each token, 0 outside the mask, and the mask."""
        return _truncated(_token_gap(log_gap, mask), mask, self.cap), mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceTruncated:
    """The importance weight of the whole completion at each of its tokens, truncated from above.

        weight_t = min(pi_old(o | q) / mu(o | q), cap)        keep = mask

    The ratio is the product over the scored tokens: unbiased up to the cap, with a variance that grows with the
    length.

    Attributes:
      cap: largest weight.

    Raises:
      ValueError: `cap` is not a finite number above 0.

    Reference: Yao et al. 2025 (see `TokenTruncated`), with the sequence in the place of the token.

    >>> weight, _ = SequenceTruncated(cap=2.0)(jnp.log(jnp.array([[0.5, 1.5], [4.0, 3.0]])), jnp.ones((2, 2), bool))
    >>> [[f"{w:.2f}" for w in row] for row in weight.tolist()]
    [['0.75', '0.75'], ['2.00', '2.00']]
    """

    cap: float = 2.0

    def __post_init__(self) -> None:
        _require_cap(self.cap)

    def __call__(self, log_gap: Tokens, mask: Mask) -> tuple[Tokens, Mask]:
        """Returns the weight of the completion at each scored token, 0 outside the mask, and the mask."""
        return _truncated(_sequence_gap(log_gap, mask), mask, self.cap), mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenBand:
    """The importance weight of each token inside a band, and 0 outside it (IcePop).

        weight_t = pi_old(o_t) / mu(o_t) if low <= pi_old(o_t) / mu(o_t) <= high, else 0        keep = mask

    The bounds belong to the band. A token outside it adds nothing to the loss but stays in the denominators, in
    contrast to `RejectTokens`. A ratio outside the band is never exponentiated.

    Attributes:
      low: smallest weight that is kept; 0 for no lower bound.
      high: largest weight that is kept.

    Raises:
      ValueError: `low` is negative, or `high` is not a finite number above `low`.

    References: IcePop, Every Step Evolves, arXiv:2510.18855, with its bounds 0.5 and 5; TRL's mode token_mask has
    the upper bound only.

    >>> weight, keep = TokenBand()(jnp.log(jnp.array([0.4, 0.6, 4.9, 5.1])), jnp.ones(4, bool))
    >>> [f"{w:.2f}" for w in weight.tolist()], keep.tolist()
    (['0.00', '0.60', '4.90', '0.00'], [True, True, True, True])
    """

    low: float = 0.5
    high: float = 5.0

    def __post_init__(self) -> None:
        _require_band(self.low, self.high)

    def __call__(self, log_gap: Tokens, mask: Mask) -> tuple[Tokens, Mask]:
        """Returns the weight of each token, 0 outside the band and the mask, and the mask."""
        return _banded(_token_gap(log_gap, mask), mask, self.low, self.high), mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceBand:
    """The importance weight of the whole completion at each of its tokens inside a band, and 0 outside it.

        weight_t = pi_old(o | q) / mu(o | q) if that lies in [low, high], else 0        keep = mask

    The bounds belong to the band. A completion outside it adds nothing to the loss but stays in the denominators, in
    contrast to `RejectSequences`.

    Attributes:
      low: smallest weight that is kept; 0 for no lower bound.
      high: largest weight that is kept.

    Raises:
      ValueError: `low` is negative, or `high` is not a finite number above `low`.

    References: the mode sequence_mask of TRL, whose only bound is the upper one, 3.0 by default; the band itself
    from IcePop, arXiv:2510.18855.

    >>> weight, _ = SequenceBand(high=3.0)(jnp.log(jnp.array([[0.5, 4.0], [2.0, 2.0]])), jnp.ones((2, 2), bool))
    >>> [[f"{w:.2f}" for w in row] for row in weight.tolist()]
    [['2.00', '2.00'], ['0.00', '0.00']]
    """

    low: float = 0.0
    high: float = 3.0

    def __post_init__(self) -> None:
        _require_band(self.low, self.high)

    def __call__(self, log_gap: Tokens, mask: Mask) -> tuple[Tokens, Mask]:
        """Returns the weight of the completion at each scored token, 0 outside the band and the mask, and the mask."""
        return _banded(_sequence_gap(log_gap, mask), mask, self.low, self.high), mask


def _token_gap(log_gap: Tokens, mask: Mask) -> Tokens:
    """Returns the gap of each token by itself, 0 outside the mask."""
    require_mask("mask", mask, "log_gap", log_gap)
    return sanitise(log_gap, mask)


def _sequence_gap(log_gap: Tokens, mask: Mask) -> Tokens:
    """Returns the gap of the whole completion, at every position of its row."""
    gap = _token_gap(log_gap, mask)
    return jnp.broadcast_to(jnp.sum(gap, axis=-1, keepdims=True), gap.shape)


def _truncated(gap: Tokens, mask: Mask, cap: float) -> Tokens:
    """Returns min(exp(gap), cap) inside the mask and 0 outside it."""
    return jnp.where(mask, jnp.exp(jnp.minimum(gap, math.log(cap))), 0.0)


def _banded(gap: Tokens, mask: Mask, low: float, high: float) -> Tokens:
    """Returns exp(gap) where it lies in [low, high] inside the mask, and 0 elsewhere."""
    floor = math.log(low) if low > 0.0 else -math.inf
    inside = mask & (gap >= floor) & (gap <= math.log(high))
    return jnp.where(inside, jnp.exp(jnp.where(inside, gap, 0.0)), 0.0)


def _require_cap(cap: float) -> None:
    """Raises ValueError unless `cap` is a finite number above 0."""
    if not 0.0 < cap < math.inf:
        raise ValueError(f"cap must be a finite number > 0, got {cap}")


def _require_band(low: float, high: float) -> None:
    """Raises ValueError unless 0 <= low < high < infinity."""
    require_at_least("low", low, 0.0)
    if not low < high < math.inf:
        raise ValueError(f"high must be a finite number > low={low}, got {high}")

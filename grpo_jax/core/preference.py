"""Preferences: losses of pairs of completions. A pair is a group of two: index 0 was chosen, index 1 rejected.

A loss maps the margin of a pair to a number; its attribute `margin` says which margin it reads. Supervised fine-tuning
needs nothing from here: it is `sft()`, and its mean over completions is `sft()` with `aggregate=sequence_mean`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

from grpo_jax.core.checks import require_at_least, require_axes, require_mask, require_same_shape
from grpo_jax.core.masking import as_float, masked_mean, sanitise
from grpo_jax.types import WeightedSum

Pairs = Float[Array, "*b 2 T"]
PairMask = Bool[Array, "*b 2 T"]


class PairLoss(Protocol):
    """What a loss of pairs offers: the margin that it reads, and its value at a margin."""

    @property
    def margin(self) -> Callable[[Pairs, Pairs, PairMask], Float[Array, "*b"]]: ...

    def __call__(self, h: Float[Array, "*b"], /) -> Float[Array, "*b"]: ...


def scored_pairs(mask: PairMask) -> Bool[Array, "*b"]:
    """Returns True for each pair whose completions both have a scored token; the others do not count.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: `mask` has no axis of two before its last.

    >>> scored_pairs(jnp.array([[[True, False], [True, True]], [[True, True], [False, False]]])).tolist()
    [True, False]
    """
    require_mask("mask", mask, "mask", mask)
    _require_pairs("mask", mask)
    return jnp.all(jnp.any(mask, axis=-1), axis=-1)


def margin(logp: Pairs, ref_logp: Pairs, mask: PairMask) -> Float[Array, "*b"]:
    """Returns how much more the policy raised the chosen completion than the rejected one; 0 if one is not scored.

        h = log pi(y_w | x) / pi_ref(y_w | x)  -  log pi(y_l | x) / pi_ref(y_l | x)
          = sum_t m_wt (logp - ref_logp)_wt  -  sum_t m_lt (logp - ref_logp)_lt

    Gradient: dh/dlogp is +1 on the scored tokens of the chosen completion, -1 on those of the rejected one and 0
    elsewhere; on `ref_logp` it is the opposite, unless the caller detaches it (`pair_losses` does).

    Args:
      logp: log-probabilities of the tokens under the policy, in nats; padding may hold anything.
      ref_logp: the same under the reference.
      mask: True on scored tokens.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: the shapes differ, or the axis before the last is not of two.

    Reference: DPO, arXiv:2305.18290, equation 7; IPO, arXiv:2310.12036, equation 17.

    >>> logp = jnp.array([[-1.0, -1.0], [-2.0, jnp.nan]])
    >>> float(margin(logp, jnp.full((2, 2), -1.5), jnp.array([[True, True], [True, False]])))
    1.5
    """
    return _compare(jnp.sum(_log_ratio(logp, ref_logp, mask), axis=-1), mask)


def mean_margin(logp: Pairs, ref_logp: Pairs, mask: PairMask) -> Float[Array, "*b"]:
    """Returns the margin of the log-ratios per token: each completion's mean instead of its sum.

        h = (1 / |y_w|) sum_t m_wt (logp - ref_logp)_wt  -  (1 / |y_l|) sum_t m_lt (logp - ref_logp)_lt

    Gradient: dh/dlogp is +1/|y_w| on the scored tokens of the chosen completion, -1/|y_l| on those of the rejected
    one. Arguments and errors are those of `margin`.

    Reference: no equation of a paper; the reading of IPO that the trainer TRL took over after it asked the authors.

    >>> logp = jnp.array([[-1.0, -1.0], [-2.0, jnp.nan]])
    >>> float(mean_margin(logp, jnp.full((2, 2), -1.5), jnp.array([[True, True], [True, False]])))
    1.0
    """
    return _compare(masked_mean(_log_ratio(logp, ref_logp, mask), mask), mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dpo:
    """The loss of Direct Preference Optimization at a margin, with the optional smoothing of its labels.

        L = -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)          e = label_smoothing

    e = 0 is DPO. With e > 0 (conservative DPO) a label is taken to be wrong with probability e: the loss is least at
    beta h = log((1 - e) / e) and grows beyond it.

    Gradient: dL/dh = -beta (sigmoid(-beta h) - e), so dL/dlogp = -beta sigmoid(-beta h) on each chosen token.

    Attributes:
      beta: strength of the KL constraint that the loss stands for; above 0.
      label_smoothing: probability that a label is wrong, below 1/2.

    Raises:
      ValueError: `beta` is not above 0, or `label_smoothing` not in [0, 0.5).

    Reference: DPO, arXiv:2305.18290, equation 7; conservative DPO is equation 3 of E. Mitchell, "A note on DPO with
    noisy preferences and relationship to IPO" (2023).

    >>> [round(x, 4) for x in Dpo(beta=0.5)(jnp.array([0.0, 2.0, -2000.0])).tolist()]
    [0.6931, 0.3133, 1000.0]
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    margin: ClassVar[Callable[[Pairs, Pairs, PairMask], Float[Array, "*b"]]] = staticmethod(margin)

    def __post_init__(self) -> None:
        _require_above_0("beta", self.beta)
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be in [0, 0.5), got {self.label_smoothing}")

    def __call__(self, h: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Returns the loss of each pair."""
        logit = self.beta * as_float(h)
        loss = (1.0 - self.label_smoothing) * jax.nn.softplus(-logit)
        return loss + self.label_smoothing * jax.nn.softplus(logit) if self.label_smoothing else loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ipo:
    """The loss of Identity Preference Optimization at a margin of whole completions, as in the paper.

        L = (h - 1 / (2 beta))^2

    The margin is pulled to 1/(2 beta) and not beyond it. Published readings differ: the paper's margin is the
    log-ratio of whole completions (this class), TRL's averages over tokens (`IpoPerToken`).

    Gradient: dL/dh = 2 (h - 1 / (2 beta)); 0 at the target, where its sign changes.

    Attributes:
      beta: strength of the KL constraint (tau in the paper); above 0.

    Raises:
      ValueError: `beta` is not above 0.

    Reference: IPO, arXiv:2310.12036, equation 17.

    >>> Ipo(beta=0.5)(jnp.array([0.0, 1.0, 3.0])).tolist()
    [1.0, 0.0, 4.0]
    """

    beta: float = 0.1
    margin: ClassVar[Callable[[Pairs, Pairs, PairMask], Float[Array, "*b"]]] = staticmethod(margin)

    def __post_init__(self) -> None:
        _require_above_0("beta", self.beta)

    def __call__(self, h: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Returns the loss of each pair."""
        return (as_float(h) - 0.5 / self.beta) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class IpoPerToken(Ipo):
    """The loss of IPO at a margin of log-ratios per token, so that long completions do not reach it sooner.

        L = (h - 1 / (2 beta))^2          h = `mean_margin`

    Gradient: dL/dlogp = 2 (h - 1 / (2 beta)) / |y_w| on each chosen token. Attributes and errors are those of `Ipo`.

    >>> IpoPerToken(beta=0.25), IpoPerToken.margin.__name__
    (IpoPerToken(beta=0.25), 'mean_margin')
    """

    margin: ClassVar[Callable[[Pairs, Pairs, PairMask], Float[Array, "*b"]]] = staticmethod(mean_margin)


def pair_losses(loss: PairLoss, *, logp: Pairs, ref_logp: Pairs, mask: PairMask) -> Float[Array, "*b"]:
    """Returns the loss of each pair, 0 for pairs that do not count.

    Gradient: through `logp` only; `ref_logp` is detached here.

    Args:
      loss: `Dpo`, `Ipo`, `IpoPerToken` or another of their form.
      logp: log-probabilities of the tokens under the policy, chosen first; padding may hold anything.
      ref_logp: the same under the reference.
      mask: True on scored tokens.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: the shapes differ, or the axis before the last is not of two.

    >>> pairs = dict(logp=jnp.zeros((3, 2, 1)), ref_logp=jnp.zeros((3, 2, 1)))
    >>> mask = jnp.array([[[True], [True]], [[True], [False]], [[True], [True]]])
    >>> pair_losses(Ipo(beta=0.5), mask=mask, **pairs).tolist()
    [1.0, 0.0, 1.0]
    """
    h = loss.margin(logp, jax.lax.stop_gradient(ref_logp), mask)
    return jnp.where(scored_pairs(mask), loss(h), 0.0)


def pair_mean(x: Real[Array, "*b"], scored: Bool[Array, "*b"]) -> WeightedSum:
    """Returns the mean of a term of each pair over the pairs that count.

        total = sum of x over the scored pairs          weight = their number

    Gradient: of the total, 1 on each scored pair and 0 on the others.

    Raises:
      TypeError: `scored` is not boolean.
      ValueError: the shapes differ.

    >>> pair_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])).mean().tolist()
    2.0
    """
    require_mask("scored", scored, "x", x)
    return WeightedSum(jnp.sum(as_float(x), where=scored), as_float(jnp.sum(scored)))


def preference_loss(loss: PairLoss, *, logp: Pairs, ref_logp: Pairs, mask: PairMask) -> WeightedSum:
    """Returns the loss of a batch of pairs, not yet divided: `pair_mean` of `pair_losses`.

        total = sum over pairs of L(h)          weight = number of pairs with both completions scored

    >>> tokens = dict(logp=jnp.zeros((3, 2, 4)), ref_logp=jnp.zeros((3, 2, 4)), mask=jnp.ones((3, 2, 4), bool))
    >>> round(float(preference_loss(Dpo(beta=0.1), **tokens).mean()), 4)
    0.6931
    """
    return pair_mean(pair_losses(loss, logp=logp, ref_logp=ref_logp, mask=mask), scored_pairs(mask))


def _log_ratio(logp: Pairs, ref_logp: Pairs, mask: PairMask) -> Pairs:
    """Returns log(pi / pi_ref) of each scored token, 0 elsewhere, after checking the arguments."""
    require_mask("mask", mask, "logp", logp)
    require_same_shape("ref_logp", ref_logp, "logp", logp)
    _require_pairs("logp", logp)
    return sanitise(logp, mask) - sanitise(ref_logp, mask)


def _compare(score: Float[Array, "*b 2"], mask: PairMask) -> Float[Array, "*b"]:
    """Returns the score of the chosen completion minus that of the rejected one, 0 where a pair does not count."""
    return jnp.where(scored_pairs(mask), score[..., 0] - score[..., 1], 0.0)


def _require_pairs(name: str, x: jax.Array) -> None:
    """Raises ValueError unless the axis before the last holds the chosen and the rejected completion."""
    require_axes(name, x, "2 T")
    if jnp.shape(x)[-2] != 2:
        raise ValueError(f"{name} needs [..., 2, T] (chosen, rejected), got shape {jnp.shape(x)}")


def _require_above_0(name: str, value: float) -> None:
    """Raises ValueError unless a Python number is finite and above 0."""
    require_at_least(name, value, 0.0)
    if value == 0.0:
        raise ValueError(f"{name} must be above 0, got {value}")

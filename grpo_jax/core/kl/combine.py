"""Estimators made of estimators: the value of one with the gradient of another, importance weights, bounds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from grpo_jax.core.checks import require_same_shape
from grpo_jax.core.kl.estimators import k2, k3
from grpo_jax.core.naming import PrintsByValue, show
from grpo_jax.core.slots import Tokens, asks

Estimator = Callable[[Tokens, Tokens], Tokens]
"""Maps log pi and log pi_ref of the drawn tokens to an estimate; it asks for nothing else."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class StraightThrough(PrintsByValue):
    """The value of one estimator with the gradient of another.

        KL = sg(value) + gradient - sg(gradient)

    By default the value is unbiased and never negative (k3), while the expected gradient over samples from pi is that
    of the reverse KL(pi || ref) (k2), which the gradient of k3 is not.

    Gradient: that of `gradient`, and none of `value`.

    Attributes:
      value: the estimator whose number is reported and averaged.
      gradient: the estimator that is differentiated.

    Raises:
      TypeError: a field is not a function of drawn tokens.
      ValueError: a field asks for more than log-probabilities.

    Reference: the estimator that verl calls k3+.

    >>> logp, ref_logp = jnp.log(jnp.array(0.5)), jnp.log(jnp.array(1.0))
    >>> f"{StraightThrough()(logp, ref_logp):.4f}", f"{jax.grad(StraightThrough())(logp, ref_logp):.4f}"
    ('0.3069', '-0.6931')
    """

    value: Estimator = k3
    gradient: Estimator = k2

    def __post_init__(self) -> None:
        require_estimator("value", self.value)
        require_estimator("gradient", self.gradient)

    def __call__(self, logp: Tokens, ref_logp: Tokens) -> Tokens:
        """Returns the estimate at each token."""
        slope = self.gradient(logp, ref_logp)
        # The difference is 0, taken first: the value keeps every digit.
        return jax.lax.stop_gradient(self.value(logp, ref_logp)) + (slope - jax.lax.stop_gradient(slope))


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class RatioWeighted(PrintsByValue):
    """An estimator of KL(pi || ref) from tokens that an older policy drew.

        KL = (pi / pi_old) kl(log pi, log pi_ref)

    The ratio turns the expectation over pi_old into one over pi. Where kl is unbiased (k1, k3), this is too, and so is
    its gradient, because the ratio is differentiated as well: on policy, the gradient is that of the exact KL, not the
    one of `kl` alone. Nothing bounds the ratio, as in the paper.

    Gradient: (pi / pi_old) (kl + dkl/dlogp) in all, one part through `log_ratio` and one through `logp`.

    Attributes:
      kl: the estimator that is weighted.

    Raises:
      TypeError: `kl` is not a function of drawn tokens.
      ValueError: `kl` asks for more than log-probabilities.

    Reference: DeepSeek-V3.2, arXiv:2512.02556, section 3.1, unbiased KL estimate. TRL's use_bias_correction_kl.

    >>> logp, ref_logp, old_logp = jnp.log(jnp.array([0.5, 1.0, 0.25]))
    >>> f"{RatioWeighted()(logp, ref_logp, log_ratio=logp - old_logp):.4f}"
    '0.6137'
    """

    kl: Estimator = k3

    def __post_init__(self) -> None:
        require_estimator("kl", self.kl)

    def __call__(self, logp: Tokens, ref_logp: Tokens, *, log_ratio: Tokens) -> Tokens:
        """Returns the estimate at each token.

        Args:
          logp: log pi.
          ref_logp: log pi_ref.
          log_ratio: log pi - log pi_old, with its gradient.
        """
        require_same_shape("log_ratio", log_ratio, "logp", logp)
        return jnp.exp(log_ratio) * self.kl(logp, ref_logp)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class ImportanceWeighted(PrintsByValue):
    """An estimator of KL(pi || ref), weighted with the importance ratio that the surrogate sees.

        KL_t = exp(s_t) kl(log pi(o_t), log pi_ref(o_t))        s: what the objective's `ratio` makes of log_ratio

    With `ratio=per_token` it is `RatioWeighted`. With `sequence_average` every token of a completion has the weight of
    the completion, as TRL's GSPO does: `dataclasses.replace(gspo(), kl=ImportanceWeighted(), kl_coef=0.04)`.

    Gradient: exp(s_t) (dkl/dlogp + kl ds_t/dlogp), one part through `logp` and one through `importance_log_ratio`.
    Under `sequence_average`, sum_t KL_t has exp(s) (kl'_u + mean_t kl_t) on each scored token u.

    Attributes:
      kl: the estimator that is weighted.

    Raises:
      TypeError: `kl` is not a function of drawn tokens.
      ValueError: `kl` asks for more than log-probabilities.

    Reference: TRL's use_bias_correction_kl with importance_sampling_level="sequence"; token by token,
    DeepSeek-V3.2, arXiv:2512.02556, section 3.1.

    >>> logp, ref_logp = jnp.log(jnp.array([0.5, 1.0]))
    >>> f"{ImportanceWeighted()(logp, ref_logp, importance_log_ratio=jnp.log(2.0)):.4f}"
    '0.6137'
    """

    kl: Estimator = k3

    def __post_init__(self) -> None:
        require_estimator("kl", self.kl)

    def __call__(self, logp: Tokens, ref_logp: Tokens, *, importance_log_ratio: Tokens) -> Tokens:
        """Returns the estimate at each token."""
        require_same_shape("importance_log_ratio", importance_log_ratio, "logp", logp)
        return jnp.exp(importance_log_ratio) * self.kl(logp, ref_logp)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Clamped(PrintsByValue):
    """An estimator whose argument and whose value are bounded, so that no single token explodes.

        d = clip(log pi - log pi_ref, -log_ratio, log_ratio)        KL = clip(kl(d, 0), -value, value)

    Gradient: that of `kl` while neither bound acts, at the bounds themselves included; exactly 0 beyond either.

    Attributes:
      kl: an estimator that reads nothing but the difference of its arguments.
      log_ratio: bound on the difference, in nats.
      value: bound on the estimate, in nats.

    Raises:
      TypeError: `kl` is not a function of drawn tokens.
      ValueError: a bound is not a finite number above 0, or `kl` asks for more than log-probabilities.

    Reference: the estimator that verl calls low_var_kl, with its bounds 20 and 10.

    >>> [f"{Clamped()(jnp.array(logp), jnp.array(0.0)):.4f}" for logp in (-1.0, -3.0, 30.0)]
    ['0.7183', '10.0000', '10.0000']
    """

    kl: Estimator = k3
    log_ratio: float = 20.0
    value: float = 10.0

    def __post_init__(self) -> None:
        require_estimator("kl", self.kl)
        for name, bound in (("log_ratio", self.log_ratio), ("value", self.value)):
            if not 0.0 < bound < math.inf:
                raise ValueError(f"{name} must be a finite number > 0, got {bound}")

    def __call__(self, logp: Tokens, ref_logp: Tokens) -> Tokens:
        """Returns the estimate at each token."""
        require_same_shape("ref_logp", ref_logp, "logp", logp)
        difference = _clamp(logp - ref_logp, self.log_ratio)
        return _clamp(self.kl(difference, jnp.zeros_like(difference)), self.value)


def _clamp(x: Tokens, bound: float) -> Tokens:
    """Returns x within +-bound; its gradient is 1 up to the bound and 0 beyond (`jnp.clip` halves it at the bound)."""
    return jnp.where(x > bound, bound, jnp.where(x < -bound, -bound, x))


def require_estimator(name: str, estimator: Estimator) -> None:
    """Raises unless `estimator` is a function of the log-probabilities of drawn tokens, and of nothing else.

    Raises:
      TypeError: it cannot be called.
      ValueError: it asks for more, as `RatioWeighted` does, or a divergence over the whole vocabulary.

    >>> require_estimator("kl", RatioWeighted())
    Traceback (most recent call last):
    ValueError: kl=RatioWeighted(kl=k3) asks for log_ratio, but only log-probabilities are given here
    """
    if not callable(estimator):
        raise TypeError(f"{name} must be an estimator on drawn tokens, got {show(estimator)}")
    if asks(estimator):
        raise ValueError(
            f"{name}={show(estimator)} asks for {', '.join(asks(estimator))}, but only log-probabilities are given here"
        )

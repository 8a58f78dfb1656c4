"""Estimators of the KL on the tokens that were drawn."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax.core.checks import require_same_shape


def k1(logp: Float[Array, "*b T"], ref_logp: Float[Array, "*b T"]) -> Float[Array, "*b T"]:
    """Returns -log r, the unbiased estimator of KL(pi || ref) with the largest variance; it may be negative.

        k1 = log pi - log pi_ref

    Gradient: 1 on `logp`. In a loss its expectation over samples from pi is zero: it belongs into the reward.

    Reference: Schulman 2020, http://joschu.net/blog/kl-approx.html.

    >>> k1(jnp.array([-1.0]), jnp.array([-1.5]))
    Array([0.5], dtype=float32)
    """
    require_same_shape("ref_logp", ref_logp, "logp", logp)
    return logp - ref_logp


def k2(logp: Float[Array, "*b T"], ref_logp: Float[Array, "*b T"]) -> Float[Array, "*b T"]:
    """Returns half of the squared log-ratio: biased in value, but its expected gradient is that of the KL.

        k2 = (log pi - log pi_ref)^2 / 2

    Gradient: log pi - log pi_ref on `logp`.

    Reference: Schulman 2020, http://joschu.net/blog/kl-approx.html.

    >>> k2(jnp.array([-1.0]), jnp.array([-2.0]))
    Array([0.5], dtype=float32)
    """
    require_same_shape("ref_logp", ref_logp, "logp", logp)
    return 0.5 * (logp - ref_logp) ** 2


def k3(logp: Float[Array, "*b T"], ref_logp: Float[Array, "*b T"]) -> Float[Array, "*b T"]:
    """Returns r - 1 - log r, the unbiased estimator of KL(pi || ref) that is never negative.

        k3 = pi_ref / pi - log(pi_ref / pi) - 1

    Gradient: 1 - r on `logp`. Its expectation over samples from pi is that of the forward KL(ref || pi).

    Reference: DeepSeekMath, arXiv:2402.03300, equation 4.

    >>> k3(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.5, 1.0]))).round(4)
    Array([0.    , 0.3069], dtype=float32)
    """
    require_same_shape("ref_logp", ref_logp, "logp", logp)
    log_r = ref_logp - logp
    return jnp.expm1(log_r) - log_r


def absolute(logp: Float[Array, "*b T"], ref_logp: Float[Array, "*b T"]) -> Float[Array, "*b T"]:
    """Returns the absolute log-ratio: a distance that is 0 at equality, but no estimator of the KL.

        absolute = |log pi - log pi_ref|

    Gradient: the sign of log pi - log pi_ref on `logp`, and 0 at equality.

    Reference: the estimator that verl calls abs.

    >>> absolute(jnp.array([-1.0, -2.0]), jnp.array([-1.5, -1.5])).tolist()
    [0.5, 0.5]
    """
    require_same_shape("ref_logp", ref_logp, "logp", logp)
    difference = logp - ref_logp
    # Not jnp.abs, whose gradient at 0 is 1: a policy that equals its reference is to stay where it is.
    return difference * jnp.sign(difference)

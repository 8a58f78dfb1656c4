"""Distance of the policy from a reference: estimators on sampled tokens, and the exact sum over the vocabulary.

Throughout, the tokens are drawn from pi, and r = pi_ref / pi (not its inverse). References are constants: the
objective detaches them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.checks import require_mask, require_same_shape
from grpo_jax.core.masking import as_float, sanitise
from grpo_jax.core.naming import PrintsByValue

TokenKl = Callable[[Float[Array, "*b T"], Float[Array, "*b T"]], Float[Array, "*b T"]]
"""Maps the log-probabilities of the drawn tokens under pi and under the reference to a KL term of each token."""

Divergence = Callable[[Float[Array, "*b V"], Float[Array, "*b V"]], Float[Array, "*b"]]
"""Maps the log-probabilities of the whole vocabulary under pi and under the reference to a divergence."""


def k1(logp: Float[Array, "*b T"], ref_logp: Float[Array, "*b T"]) -> Float[Array, "*b T"]:
    """Returns -log r, the unbiased estimator of KL(pi || ref) with the largest variance; it may be negative.

        k1 = log pi - log pi_ref

    Gradient: 1 on `logp`. In a loss its expectation over samples from pi is zero: it belongs into the reward.

    Raises:
      ValueError: the shapes differ.

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

    Raises:
      ValueError: the shapes differ.

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

    Raises:
      ValueError: the shapes differ.

    Reference: DeepSeekMath, arXiv:2402.03300, equation 4.

    >>> k3(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.5, 1.0]))).round(4)
    Array([0.    , 0.3069], dtype=float32)
    """
    require_same_shape("ref_logp", ref_logp, "logp", logp)
    log_r = ref_logp - logp
    return jnp.expm1(log_r) - log_r


@dataclasses.dataclass(frozen=True, repr=False)
class FullVocabulary(PrintsByValue):
    """Marks a divergence that needs the whole vocabulary at every token, not just the tokens that were drawn.

    It is no function of the drawn tokens, so it cannot be called like an estimator: whoever computes the logits
    passes `divergence` on to `token_logprobs`, which evaluates it without holding `[..., T, V]`.

    >>> exact
    FullVocabulary(divergence=kl_divergence)
    """

    divergence: Divergence


def kl_divergence(logp_V: Float[Array, "*b V"], ref_logp_V: Float[Array, "*b V"]) -> Float[Array, "*b"]:
    """Returns KL(pi || ref), summed over the vocabulary on the last axis.

        KL = sum_v pi_v (log pi_v - log ref_v),        0 log 0 = 0

    An entry whose probability is 0 (a log of -inf, or one that underflows) contributes neither value nor gradient,
    whatever the reference says there. Where only the reference is 0, the divergence is infinite.

    Gradient: that of the formula on both arguments.

    Raises:
      ValueError: the shapes differ.

    >>> kl = kl_divergence(jnp.log(jnp.array([0.5, 0.5, 0.0])), jnp.log(jnp.array([0.25, 0.75, 0.0])))
    >>> f"{kl:.4f}"
    '0.1438'
    """
    require_same_shape("ref_logp_V", ref_logp_V, "logp_V", logp_V)
    live = jnp.exp(logp_V) > 0
    logp_V = jnp.where(live, logp_V, 0.0)
    ref_logp_V = jnp.where(live, ref_logp_V, 0.0)
    return jnp.sum(jnp.exp(logp_V) * (logp_V - ref_logp_V), axis=-1)


exact = FullVocabulary(kl_divergence)
"""The exact KL(pi || ref) at every token."""


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

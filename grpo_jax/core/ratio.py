"""Ratios: over what the probabilities of the new and the old policy are compared.

The slot's contract is `core.slots.Ratio`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.checks import require_mask
from grpo_jax.core.masking import masked_mean, sanitise


def per_token(log_ratio: Float[Array, "*b T"], mask: Bool[Array, "*b T"]) -> Float[Array, "*b T"]:
    """Returns the log-ratio of each token by itself, 0 outside the mask.

        s_t = log pi(o_t | q, o_<t) - log pi_old(o_t | q, o_<t)

    Gradient: the identity on scored tokens, 0 elsewhere.

    Reference: DeepSeekMath, arXiv:2402.03300, equation 3.

    >>> per_token(jnp.array([0.5, jnp.nan]), jnp.array([True, False]))
    Array([0.5, 0. ], dtype=float32)
    """
    require_mask("mask", mask, "log_ratio", log_ratio)
    return sanitise(log_ratio, mask)


def per_sequence(log_ratio: Float[Array, "*b T"], mask: Bool[Array, "*b T"]) -> Float[Array, "*b T"]:
    """Returns the log-ratio of the whole completion at each of its scored tokens, 0 outside the mask.

        s_t = log pi(o | q) - log pi_old(o | q) = sum_u m_u (log pi(o_u) - log pi_old(o_u))

    Every scored token carries the same number, so that surrogates over tokens apply unchanged; the mean over a
    completion then gives its one term. The sum grows with the length, unlike the mean of GSPO.

    Gradient: each s_t reaches every scored token of its row with weight 1.

    Reference: DeepSeek-R1, arXiv:2501.12948, equation 1, whose ratio is pi(o|q) / pi_old(o|q).

    >>> per_sequence(jnp.array([0.5, 0.25, jnp.nan]), jnp.array([True, True, False]))
    Array([0.75, 0.75, 0.  ], dtype=float32)
    """
    require_mask("mask", mask, "log_ratio", log_ratio)
    total = jnp.sum(sanitise(log_ratio, mask), axis=-1, keepdims=True)
    return jnp.where(mask, total, 0.0)


def sequence_average(log_ratio: Float[Array, "*b T"], mask: Bool[Array, "*b T"]) -> Float[Array, "*b T"]:
    """Returns the mean log-ratio of the completion at each of its scored tokens, 0 outside the mask (GSPO).

        s_t = (1 / |o|) sum_u m_u (log pi(o_u) - log pi_old(o_u)) = log [ pi(o | q) / pi_old(o | q) ]^(1/|o|)

    The ratio of whole completions, with its length taken out: clipping ranges are far smaller than for tokens.

    Gradient: each s_t reaches every scored token of its row with weight 1/|o|.

    Reference: Group Sequence Policy Optimization, arXiv:2507.18071, equation 7.

    >>> sequence_average(jnp.array([0.5, 0.25, jnp.nan]), jnp.array([True, True, False])).tolist()
    [0.375, 0.375, 0.0]
    """
    require_mask("mask", mask, "log_ratio", log_ratio)
    return jnp.where(mask, masked_mean(log_ratio, mask)[..., None], 0.0)


def sequence_average_token(log_ratio: Float[Array, "*b T"], mask: Bool[Array, "*b T"]) -> Float[Array, "*b T"]:
    """Returns the numbers of `sequence_average`, with the gradient of each token by itself (GSPO-token).

        s_t = sg(s) + (log pi(o_t) - log pi_old(o_t)) - sg(log pi(o_t) - log pi_old(o_t)),     s the mean of the row

    With one advantage per completion and a surrogate that is linear in the ratio or clips it, the loss and its
    gradient are those of `sequence_average`; this one allows an advantage of each token.

    Gradient: the identity on scored tokens, 0 elsewhere, as in `per_token`. The two stop-gradients are the paper's.

    Reference: Group Sequence Policy Optimization, arXiv:2507.18071, section 4.3, the ratio of GSPO-token.

    >>> sequence_average_token(jnp.array([0.5, 0.25, jnp.nan]), jnp.array([True, True, False])).tolist()
    [0.375, 0.375, 0.0]
    """
    value = jax.lax.stop_gradient(sequence_average(log_ratio, mask))
    own = sanitise(log_ratio, mask)
    # The difference is 0, taken first: the value keeps every digit.
    return value + (own - jax.lax.stop_gradient(own))

"""The KL summed over the vocabulary, which no drawn token can tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax.core.checks import require_same_shape
from grpo_jax.core.naming import PrintsByValue
from grpo_jax.core.slots import Tokens

Divergence = Callable[[Float[Array, "*b V"], Float[Array, "*b V"]], Float[Array, "*b"]]
"""Maps the log-probabilities of the whole vocabulary under pi and under the reference to a divergence."""


@dataclasses.dataclass(frozen=True, repr=False)
class FullVocabulary(PrintsByValue):
    """A divergence that needs the whole vocabulary at every token, not just the tokens that were drawn.

    Whoever computes the logits passes the attribute `divergence` on to `token_logprobs`, which evaluates it without
    holding `[..., T, V]`. What comes out is what this asks for.

    Gradient: that of `divergence`.

    >>> exact
    FullVocabulary(divergence=kl_divergence)
    >>> exact(jnp.zeros(1), None, divergence=jnp.array([0.25]))
    Array([0.25], dtype=float32)
    """

    divergence: Divergence

    def __call__(self, logp: Tokens, ref_logp: None, *, divergence: Tokens) -> Tokens:
        """Returns the divergence at each token; the drawn tokens do not matter."""
        require_same_shape("divergence", divergence, "logp", logp)
        return divergence


def kl_divergence(logp_V: Float[Array, "*b V"], ref_logp_V: Float[Array, "*b V"]) -> Float[Array, "*b"]:
    """Returns KL(pi || ref), summed over the vocabulary on the last axis.

        KL = sum_v pi_v (log pi_v - log ref_v),        0 log 0 = 0

    An entry whose probability is 0 (a log of -inf, or one that underflows) contributes neither value nor gradient,
    whatever the reference says there. Where only the reference is 0, the divergence is infinite.

    Gradient: that of the formula on both arguments.

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

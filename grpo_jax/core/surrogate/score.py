"""The score function: nothing is compared with an older policy."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.checks import check_tokens


def reinforce(
    log_ratio: Float[Array, "*b T"], logp: Float[Array, "*b T"], advantage: Float[Array, "*b T"]
) -> tuple[Float[Array, "*b T"], Bool[Array, "*b T"]]:
    """Returns the score-function loss of each token; nothing is ever clipped.

        L = -A log pi(o_t | q, o_<t)

    With A = 1 this is maximum likelihood, that is supervised fine-tuning.

    Gradient: -A on `logp`; `log_ratio` is not used. `advantage` is to be detached by the caller.

    References: Williams 1992, doi:10.1007/BF00992696; as used for language models, arXiv:2402.14740; the loss of GPG,
    arXiv:2504.02546.

    >>> reinforce(jnp.zeros(2), jnp.array([-1.0, -2.0]), jnp.array([1.0, -1.0]))[0]
    Array([ 1., -2.], dtype=float32)
    """
    check_tokens(log_ratio, logp, advantage)
    return -advantage * logp, jnp.zeros(jnp.shape(logp), bool)

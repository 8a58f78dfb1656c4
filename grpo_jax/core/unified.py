"""One view of all objectives: each of them says how much a token's log-probability is to rise."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from grpo_jax.core.checks import require_axes, require_floats
from grpo_jax.core.masking import as_float
from grpo_jax.types import WeightedSum


def gradient_weights(
    loss: Callable[[Float[Array, "*b T"]], WeightedSum], logp: Float[Array, "*b T"]
) -> Float[Array, "*b T"]:
    """Returns how strongly a loss raises each token's log-probability: the coefficient of grad log pi.

        -grad_theta loss = sum_t w_t grad_theta log pi_theta(o_t | q, o_<t),          w_t = -d mean(loss) / d logp_t

    Fine-tuning, preferences and policy gradients differ in w alone, the number of tokens, pairs or completions that
    the loss divides by included:

        SFT    1 / N                                                              N tokens
        DPO    +- beta sigmoid(-beta h) / N                                       N pairs; - on the rejected completion
        GRPO   (r A live + kl_coef (pi_ref / pi - 1)) / (N |o|)                   N completions of |o| tokens, KL by k3
        PPO    r A live / N                                                       N tokens; live: no bound acts

    Where the mask is False, w is 0. What the loss holds fixed (advantages, old log-probs) has no part in w.

    Args:
      loss: the loss as a function of the log-probabilities alone, such as
        `lambda logp: policy_loss(objective, logp=logp, ...)[0]` or `lambda logp: preference_loss(Dpo(), ...)`.
      logp: where to look, in nats.

    Returns:
      The weights, in float32 or wider.

    Raises:
      TypeError: `logp` holds no floating-point numbers.
      ValueError: `logp` has no axis.

    Reference: DeepSeekMath, arXiv:2402.03300, equation 5 and table 10 (the gradient coefficient).

    >>> import jax.numpy as jnp
    >>> from grpo_jax.core.aggregate import token_mean
    >>> mask = jnp.array([[True, True], [True, False]])
    >>> weights = gradient_weights(lambda x: token_mean(-x, mask), jnp.zeros((2, 2)))
    >>> [[round(w, 4) for w in row] for row in weights.tolist()]
    [[0.3333, 0.3333], [0.3333, 0.0]]
    """
    require_axes("logp", logp, "T")
    require_floats("logp", logp)
    return -jax.grad(lambda x: loss(x).mean())(as_float(logp))

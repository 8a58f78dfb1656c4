"""Rejection of what the trainer would not have sampled: it leaves the mask, and with it every denominator."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from grpo_jax.core.checks import require_at_least, require_mask
from grpo_jax.core.kl import k3
from grpo_jax.core.kl.combine import Estimator, require_estimator
from grpo_jax.core.masking import as_float, masked_mean, sanitise
from grpo_jax.core.naming import PrintsByValue
from grpo_jax.core.slots import Mask, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class RejectTokens(PrintsByValue):
    """Keeps the tokens at which sampler and trainer agree, with weight 1.

        d_t = estimator(log mu(o_t), log pi_old(o_t))        keep = mask and |d_t| <= limit        weight = 1

    The tokens are drawn from mu, so the divergence that they estimate is KL(mu || pi_old): mu stands in the place of
    the policy and pi_old in that of the reference. With g = log_gap the estimates are

        k1 = -g        k2 = g^2 / 2        k3 = exp(g) - g - 1

    The absolute value matters for k1 alone, which may be negative. An estimate that is NaN is rejected.

    Attributes:
      estimator: an estimator of `core.kl` that reads nothing but the difference of the log-probabilities.
      limit: largest estimate that is kept, in nats.

    Raises:
      TypeError: `estimator` is not a function of drawn tokens.
      ValueError: `limit` is negative, or `estimator` asks for more than log-probabilities.

    Reference: rollout rejection sampling in verl (rollout_rs: token_k1, token_k2, token_k3), which bounds the ratio
    of k1 from both sides separately; here one limit holds for both signs.

    >>> weight, keep = RejectTokens(limit=0.1)(jnp.log(jnp.array([0.5, 1.1, 2.0])), jnp.ones(3, bool))
    >>> weight.tolist(), keep.tolist()
    ([1.0, 1.0, 1.0], [False, True, False])
    """

    limit: float
    estimator: Estimator = k3

    def __post_init__(self) -> None:
        require_at_least("limit", self.limit, 0.0)
        require_estimator("estimator", self.estimator)

    def __call__(self, log_gap: Tokens, mask: Mask) -> tuple[Tokens, Mask]:
        """Returns weight 1 on scored tokens, and True on those that are kept."""
        return as_float(mask), mask & (jnp.abs(_estimate(self.estimator, log_gap, mask)) <= self.limit)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class RejectSequences(PrintsByValue):
    """Keeps the completions on which sampler and trainer agree, with weight 1.

        d = (1/|o|) sum_t estimator(log mu(o_t), log pi_old(o_t))        keep = mask and |d| <= limit        weight = 1

    The direction is that of `RejectTokens`, KL(mu || pi_old). The mean over scored tokens comes before the absolute
    value: with k1, differences of opposite sign cancel. A completion whose mean is NaN or infinite is rejected.

    Attributes:
      estimator: an estimator of `core.kl` that reads nothing but the difference of the log-probabilities.
      limit: largest mean estimate that is kept, in nats per token.

    Raises:
      TypeError: `estimator` is not a function of drawn tokens.
      ValueError: `limit` is negative, or `estimator` asks for more than log-probabilities.

    Reference: rollout rejection sampling in verl (rollout_rs: seq_mean_k1, seq_mean_k2, seq_mean_k3).

    >>> log_gap = jnp.log(jnp.array([[0.4, 1.0], [1.1, 1.2]]))
    >>> RejectSequences(limit=0.1)(log_gap, jnp.ones((2, 2), bool))[1].tolist()
    [[False, False], [True, True]]
    """

    limit: float
    estimator: Estimator = k3

    def __post_init__(self) -> None:
        require_at_least("limit", self.limit, 0.0)
        require_estimator("estimator", self.estimator)

    def __call__(self, log_gap: Tokens, mask: Mask) -> tuple[Tokens, Mask]:
        """Returns weight 1 on scored tokens, and True on those of the completions that are kept."""
        row = masked_mean(_estimate(self.estimator, log_gap, mask), mask)
        return as_float(mask), mask & (jnp.abs(row) <= self.limit)[..., None]


def _estimate(estimator: Estimator, log_gap: Tokens, mask: Mask) -> Tokens:
    """Returns the estimate of KL(mu || pi_old) at each token: log mu - log pi_old is minus the gap."""
    require_mask("mask", mask, "log_gap", log_gap)
    gap = sanitise(log_gap, mask)
    return estimator(-gap, jnp.zeros_like(gap))

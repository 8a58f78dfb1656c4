"""Off-policy sequence masking: bad completions that the policy has left behind teach it nothing."""

from __future__ import annotations

import dataclasses

from grpo_jax.core.checks import require_at_least, require_mask, require_same_shape
from grpo_jax.core.masking import as_float, masked_mean, sanitise
from grpo_jax.core.slots import Mask, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class OffPolicyMask:
    """Weight 0 on tokens with negative advantage in completions that the policy has moved away from, 1 elsewhere.

        d = (1/|o|) sum_t [ log mu(o_t) - log pi(o_t) ]
        weight_t = 0 if A_t < 0 and d > limit, else 1        keep = mask

    d is measured from what the sampler drew from to the policy that learns, so it covers stale samples and numerical
    differences between sampler and trainer alike; `log_gap` is not used. Good completions are learnt from however
    far off they are. What is masked stays in the denominators. A d that is NaN does not exceed the limit.

    Attributes:
      limit: largest mean log-ratio of a bad completion, in nats per token.

    Raises:
      ValueError: `limit` is negative.

    Reference: DeepSeek-V3.2, arXiv:2512.02556, section 3.1, off-policy sequence masking. TRL's
    off_policy_mask_threshold is this limit.

    >>> import jax.numpy as jnp
    >>> logp, advantage = jnp.array([[-3.0, -1.0]] * 2), jnp.array([[-1.0, -1.0], [1.0, 1.0]])
    >>> sampler_logp, mask = jnp.array([[-1.0, -1.0]] * 2), jnp.ones((2, 2), bool)
    >>> named = {"logp": logp, "sampler_logp": sampler_logp, "advantage": advantage}
    >>> OffPolicyMask(limit=0.5)(jnp.zeros((2, 2)), mask, **named)[0].tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """

    limit: float

    def __post_init__(self) -> None:
        require_at_least("limit", self.limit, 0.0)

    def __call__(
        self, log_gap: Tokens, mask: Mask, *, logp: Tokens, sampler_logp: Tokens, advantage: Tokens
    ) -> tuple[Tokens, Mask]:
        """Returns weights of 1 and 0, 0 outside the mask, and the mask.

        Args:
          log_gap: not used.
          mask: True on scored tokens; outside it, the other arrays may hold anything.
          logp: log-probabilities under the policy that learns.
          sampler_logp: log-probabilities under what the sampler drew from.
          advantage: advantage of each token.
        """
        require_mask("mask", mask, "log_gap", log_gap)
        for name, x in (("logp", logp), ("sampler_logp", sampler_logp), ("advantage", advantage)):
            require_same_shape(name, x, "log_gap", log_gap)
        moved = sanitise(sampler_logp, mask) - sanitise(logp, mask)
        far = masked_mean(moved, mask) > self.limit
        dropped = far[..., None] & (advantage < 0)
        return as_float(mask & ~dropped), mask

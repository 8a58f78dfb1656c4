"""Learning from the tokens at which the policy was least certain."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.checks import check_tokens, require_mask
from grpo_jax.core.masking import sanitise
from grpo_jax.core.naming import PrintsByValue, show
from grpo_jax.core.slots import Surrogate, asks
from grpo_jax.core.surrogate.clip import PpoClip
from grpo_jax.core.surrogate.selection import check_share, largest, portion


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class EntropySelected(PrintsByValue):
    """Another surrogate on the tokens of highest entropy, and 0 on all others.

        L_t = surrogate(...)_t   t in I,      0 elsewhere
        I = the 1 + floor(share (n - 1)) scored tokens of the batch with the largest entropy

    n is the number of scored tokens of the batch. The count is that of the tokens at or above the (1 - share)
    quantile, interpolated linearly, as TRL takes it; of equal entropies at the threshold TRL keeps all, and here
    those that come first. What an aggregator divides by does not change: the others count, as 0. Entropies are those
    of the policy that sampled, at the start of the updates.

    Gradient: that of the surrogate on I, exactly 0 elsewhere. `clipped` is that of the surrogate on I.

    Attributes:
      surrogate: `(log_ratio, logp, advantage) -> (loss, clipped)`, one that asks for nothing more.
      share: share of the scored tokens.

    Raises:
      ValueError: `share` is not in (0, 1], or the surrogate asks for more than its slot passes.

    Reference: Beyond the 80/20 Rule, arXiv:2506.01939; TRL's `top_entropy_quantile`, which is 1 - share
    inside TRL and share in its configuration.

    >>> EntropySelected()
    EntropySelected(surrogate=PpoClip(low=0.2, high=0.2, dual=None), share=0.2)
    >>> mask = jnp.array([True, True, True, False])
    >>> EntropySelected(share=0.5).select(mask=mask, entropy=jnp.array([0.1, 2.0, 0.3, 9.0])).tolist()
    [False, True, True, False]
    """

    surrogate: Surrogate = dataclasses.field(default_factory=PpoClip)
    share: float = 0.2

    def __post_init__(self) -> None:
        check_share(self.share)
        asked = asks(self.surrogate)
        if asked:
            raise ValueError(
                f"surrogate={show(self.surrogate)} asks for {', '.join(asked)}, which EntropySelected does not pass "
                "on; take one that asks for nothing, such as PpoClip or reinforce"
            )

    def select(self, *, mask: Bool[Array, "*b T"], entropy: Float[Array, "*b T"]) -> Bool[Array, "*b T"]:
        """Returns True on the tokens that carry the surrogate."""
        require_mask("mask", mask, "entropy", entropy)
        return largest(sanitise(entropy, mask), mask, 1 + portion(self.share, jnp.sum(mask) - 1))

    def __call__(
        self,
        log_ratio: Float[Array, "*b T"],
        logp: Float[Array, "*b T"],
        advantage: Float[Array, "*b T"],
        *,
        selected: Bool[Array, "*b T"],
    ) -> tuple[Float[Array, "*b T"], Bool[Array, "*b T"]]:
        """Returns the loss of each token, and True where the surrogate cut a selected one."""
        check_tokens(log_ratio, logp, advantage)
        require_mask("selected", selected, "log_ratio", log_ratio)
        loss, clipped = self.surrogate(*(sanitise(x, selected) for x in (log_ratio, logp, advantage)))
        return sanitise(loss, selected), clipped & selected

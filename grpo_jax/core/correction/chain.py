"""Several corrections as one."""

from __future__ import annotations

import dataclasses

from grpo_jax.core.checks import require_mask
from grpo_jax.core.masking import as_float
from grpo_jax.core.naming import show
from grpo_jax.core.slots import Correction, Mask, Tokens, fill, require_offered


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Chained:
    """Several corrections at once: their weights multiply, and what one of them rejects is rejected.

        weight = prod_i weight_i        keep = and_i keep_i

    Each part sees the original gap and mask, not what the others left of it, so their order does not matter. It asks
    for whatever its parts may ask for.

    Attributes:
      corrections: the parts, at least one.

    Raises:
      TypeError: `corrections` is not a tuple.
      ValueError: it is empty, or a part asks for a name that corrections are not offered.

    >>> from grpo_jax.core.correction import RejectSequences, TokenTruncated
    >>> Chained(corrections=(TokenTruncated(cap=2.0), RejectSequences(limit=0.5)))
    Chained(corrections=(TokenTruncated(cap=2.0), RejectSequences(limit=0.5, estimator=k3)))
    """

    corrections: tuple[Correction, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.corrections, tuple):
            raise TypeError(f"corrections must be a tuple, got {self.corrections!r}")
        if not self.corrections:
            raise ValueError("corrections must hold at least one correction, got ()")
        for part in self.corrections:
            require_offered("correction", part)

    def __repr__(self) -> str:
        shown = ", ".join(show(part) for part in self.corrections)
        return f"{type(self).__name__}(corrections=({shown}{',' if len(self.corrections) == 1 else ''}))"

    def __call__(
        self, log_gap: Tokens, mask: Mask, *, logp: Tokens, sampler_logp: Tokens, advantage: Tokens
    ) -> tuple[Tokens, Mask]:
        """Returns the product of the weights, 0 outside the mask, and the tokens that every part keeps.

        Args and errors are those of the parts; `OffPolicyMask` describes all of them.
        """
        require_mask("mask", mask, "log_gap", log_gap)
        available = {"logp": logp, "sampler_logp": sampler_logp, "advantage": advantage}
        weight, keep = as_float(mask), mask
        for part in self.corrections:
            own_weight, own_keep = part(log_gap, mask, **fill("correction", part, available))
            weight, keep = weight * own_weight, keep & own_keep
        return weight, keep

"""Corrections: the sampler is not quite the policy that the trainer computes, and the loss makes up for it.

The slot's contract is `core.slots.Correction`.

    weighing   TokenTruncated, SequenceTruncated   exp(log_gap), bounded from above
               TokenBand, SequenceBand             exp(log_gap) inside a band, 0 outside; the denominators stay
    rejecting  RejectTokens, RejectSequences       what is too far off leaves the mask and the denominators
    masking    OffPolicyMask                       0 for bad completions that the policy has moved away from
    several    Chained                             weights multiply, what one rejects is rejected
"""

from grpo_jax.core.correction.chain import Chained
from grpo_jax.core.correction.off_policy import OffPolicyMask
from grpo_jax.core.correction.reject import RejectSequences, RejectTokens
from grpo_jax.core.correction.weigh import SequenceBand, SequenceTruncated, TokenBand, TokenTruncated

__all__ = [
    "Chained",
    "OffPolicyMask",
    "RejectSequences",
    "RejectTokens",
    "SequenceBand",
    "SequenceTruncated",
    "TokenBand",
    "TokenTruncated",
]

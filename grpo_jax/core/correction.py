"""Corrections: the sampler is not quite the policy that the trainer computes, and the loss makes up for it.

The slot's contract is `(log_gap[..., T], mask[..., T], *, ...) -> (weight[..., T], keep[..., T])` with

    log_gap = log pi_old(o_t) - log mu(o_t)        pi_old scored by the trainer, mu what the sampler drew from

`weight` multiplies the surrogate of a token; `keep` is a part of the mask: what it leaves out is in no sum and in no
denominator. Everything here is a constant: the objective detaches inputs and results. What else a correction needs it
declares as keyword-only parameters (`core.slots`): logp, sampler_logp and advantage, `[..., T]` each.
"""

from __future__ import annotations

__all__: list[str] = []

"""Whole losses on rows `[B, T]`."""

from __future__ import annotations

import math

import numpy as np

from grpo_jax.testing.oracle.kl import k3
from grpo_jax.testing.oracle.surrogate import ppo_clip


def grpo_loss(
    logp, old_logp, ref_logp, mask, advantage, *, low, high, kl_coef, dual=None, whole_sequence=False, aggregate
):
    """Returns (total, weight) of the GRPO loss on rows [B, T] (DeepSeekMath, arXiv:2402.03300, equation 3).

    `whole_sequence` takes the ratio pi(o|q) / pi_old(o|q) of DeepSeek-R1 (arXiv:2501.12948, equation 1).

    >>> from grpo_jax.testing.oracle.aggregate import token_mean
    >>> row = [[-1.0]]
    >>> grpo_loss(row, row, row, [[True]], [[2.0]], low=0.2, high=0.2, kl_coef=1.0, aggregate=token_mean)
    (-2.0, 1.0)
    """
    loss = np.zeros(np.shape(logp))
    for b in range(len(loss)):
        scored = np.flatnonzero(mask[b])
        for t in scored:
            compared = scored if whole_sequence else [t]
            ratio = math.exp(sum(float(logp[b][u]) - float(old_logp[b][u]) for u in compared))
            kl = float(k3(logp[b][t], ref_logp[b][t])) if kl_coef else 0.0
            loss[b, t] = ppo_clip(ratio, float(advantage[b][t]), low=low, high=high, dual=dual) + kl_coef * kl
    return aggregate(loss, mask)

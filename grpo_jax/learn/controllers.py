"""Coefficients that adapt: their value during a step, and after it."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax.core.aggregate import token_mean
from grpo_jax.core.control import AdaptiveEntropy, AdaptiveKl
from grpo_jax.learn.learner import Learner
from grpo_jax.learn.state import TrainState
from grpo_jax.types import TokenBatch

Coefs = dict[str, Float[Array, ""]]
"""The coefficients that adapt, by the objective's field."""


def effective_coefs(learner: Learner, state: TrainState, batch: TokenBatch) -> tuple[Coefs, Float[Array, ""] | None]:
    """Returns the coefficients of this step, and the entropy of the policy that sampled where one of them reads it.

    The mean of -log mu over drawn tokens estimates that entropy without reading the vocabulary.
    """
    coefs = dict(state.controls)
    control = learner.objective.controls.get("entropy_coef")
    if not isinstance(control, AdaptiveEntropy):
        return coefs, None
    entropy = token_mean(-batch.sampler_logp, batch.mask).mean()
    coefs["entropy_coef"] = control.effective(coefs["entropy_coef"], entropy)
    return coefs, entropy


def after_step(
    learner: Learner,
    controls: Coefs,
    batch: TokenBatch,
    *,
    kl: Float[Array, ""] | None,
    entropy: Float[Array, ""] | None,
) -> Coefs:
    """Returns the coefficients after a step, given the mean KL and entropy per token that it measured."""
    after = {}
    for name, control in learner.objective.controls.items():
        if isinstance(control, AdaptiveKl):
            samples = jnp.sum(jnp.any(batch.mask, axis=-1))
            after[name] = control.update(controls[name], kl, samples)
        else:
            after[name] = control.update(controls[name], entropy)
    return after

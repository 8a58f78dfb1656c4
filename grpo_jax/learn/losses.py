"""The losses of a batch, and of the part of it that one micro-batch computes.

The model sees rows; the terms of the objective see completions, and their sums add up whatever the cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.core.aggregate import token_mean
from grpo_jax.core.logprobs import token_logprobs
from grpo_jax.core.objective import policy_loss
from grpo_jax.core.value import value_loss
from grpo_jax.learn.controllers import Coefs
from grpo_jax.learn.critic import values
from grpo_jax.learn.layout import Cells, Size, from_rows, live, pick, rows, to_rows
from grpo_jax.learn.learner import Learner
from grpo_jax.learn.scoring import padded_layout
from grpo_jax.models.decoder import Params, head, hidden_states
from grpo_jax.types import TokenBatch, WeightedSum

Metrics = dict[str, Any]
Loss = tuple[WeightedSum, dict[str, WeightedSum]]
"""A loss, not yet divided, and its metrics."""


def loss(
    learner: Learner, params: Params, reference: Params | None, batch: TokenBatch, coefs: Coefs | None = None
) -> Loss:
    """Returns the objective on a batch, not yet divided, and its metrics.

    Gradient: with respect to `params` alone; the reference and everything in the batch are constants.
    """
    layout = padded_layout(batch.prompt, batch.tokens, None)
    return policy_part(learner, params, reference, batch, coefs, layout.size, layout.cells_of(0))


def critic_loss(learner: Learner, params: dict[str, Any], batch: TokenBatch) -> Loss:
    """Returns the critic's loss on a batch, not yet divided, and its metrics."""
    layout = padded_layout(batch.prompt, batch.tokens, None)
    return critic_part(learner, params, batch, layout.size, layout.cells_of(0))


def policy_part(
    learner: Learner,
    params: Params,
    reference: Params | None,
    batch: TokenBatch,
    coefs: Coefs | None,
    size: Size,
    cells: Cells,
) -> Loss:
    """Returns what the completions of one micro-batch add to `loss`."""
    objective, model = learner.objective, learner.model
    inputs = rows(size, cells, batch.prompt, batch.tokens)
    against = divergence = None
    if batch.ref_hidden is not None:
        ref_hidden = to_rows(size, cells, pick(size, cells, batch.ref_hidden))
        against = jax.lax.stop_gradient((ref_hidden, head(model, reference)))
        divergence = objective.kl.divergence
    scored = token_logprobs(
        hidden_states(model, params, inputs),
        head(model, params),
        inputs.tokens,
        temperature=model.temperature,
        chunk=model.logprob_chunk,
        soft_cap=model.final_cap,
        entropy=objective.needs_entropy,
        reference=against,
        divergence=divergence,
    )

    def of_completion(known: dict[str, Any]) -> Loss:
        sampler_logp = known.pop("sampler_logp")
        corrected = objective.correction is not None
        total, metrics = policy_loss(objective, **known, sampler_logp=sampler_logp if corrected else None, coefs=coefs)
        metrics["loss"] = total
        logp, mask, old_logp = known["logp"], known["mask"], known["old_logp"]
        # The mean of -log pi over drawn tokens estimates the entropy without reading the vocabulary.
        metrics.setdefault("entropy", token_mean(-logp, mask))
        if sampler_logp is not None:
            old_logp = logp if old_logp is None else old_logp
            metrics["sampler_gap"] = token_mean(jnp.abs(old_logp - sampler_logp), mask)
        return total, jax.lax.stop_gradient(metrics)

    said = {name: getattr(scored, name) for name in ("logp", "entropy", "divergence")}
    said = jax.tree.map(lambda x: from_rows(size, cells, x), said)
    names = ("advantage", "old_logp", "sampler_logp", "ref_logp", "selected")
    return _summed(of_completion, size, cells, batch, names, said)


def critic_part(learner: Learner, params: dict[str, Any], batch: TokenBatch, size: Size, cells: Cells) -> Loss:
    """Returns what the completions of one micro-batch add to the critic's loss."""

    def of_completion(known: dict[str, Any]) -> Loss:
        return value_loss(learner.objective, **known)

    value = from_rows(size, cells, values(learner, params, rows(size, cells, batch.prompt, batch.tokens)))
    known = {"old_value": batch.value}
    return _summed(of_completion, size, cells, batch, ("returns",), {"value": value}, known)


def _summed(
    function: Callable[[dict[str, Any]], Loss],
    size: Size,
    cells: Cells,
    batch: TokenBatch,
    names: tuple[str, ...],
    said: dict[str, Any],
    more: dict[str, Any] | None = None,
) -> Loss:
    """Returns the sum over completions of `function` of each one's tokens.

    One at a time, because an aggregator may count rows, and a cell may have fewer than it has room for.

    Args:
      names: what to take from the batch.
      said: `[D, c, U]`, of the completions of the cells already.
      more: `[P, G, T]`, by name.
    """
    from_batch = {name: getattr(batch, name) for name in names} | (more or {})
    known = pick(size, cells, from_batch) | said
    known["mask"] = pick(size, cells, batch.mask) & live(size, cells)
    each = jax.vmap(jax.vmap(function))(known)
    here = cells.completion >= 0
    return jax.tree.map(lambda x: jnp.sum(jnp.where(here, x, 0)), each)

"""One step of training as a pure function: state and batch in, state and metrics out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from grpo_jax.core import policy_loss, token_logprobs
from grpo_jax.core.aggregate import token_mean
from grpo_jax.core.value import explained_variance
from grpo_jax.models import head, hidden_states
from grpo_jax.models.decoder import Params
from grpo_jax.train.control import Coefs, in_force, steered
from grpo_jax.train.critic import Critic, critic_loss, optimizer
from grpo_jax.train.learner import Learner
from grpo_jax.train.microbatch import split
from grpo_jax.train.state import TrainState, constrain_state, reference_params, whole
from grpo_jax.types import TokenBatch, WeightedSum

Metrics = dict[str, Any]


def train_step(
    learner: Learner, state: TrainState, batch: TokenBatch, order: Int[Array, "N M"]
) -> tuple[TrainState, Metrics]:
    """Returns the state after all updates on a batch, and the means of their metrics.

    Each row of `order` is one minibatch: one gradient, whose denominators are those of the whole minibatch, and one
    optax update. Coefficients that adapt hold still until the last of them.

    Args:
      order: prompts of each minibatch, epoch after epoch (`minibatch_order`).
    """
    coefs, entropy = in_force(learner, state, batch)
    if order.shape[0] == 1:
        state, metrics = _update(learner, state, batch, coefs)
    else:
        visit = lambda state, index: _update(learner, state, jax.tree.map(lambda x: x[index], batch), coefs)  # noqa: E731
        state, metrics = jax.lax.scan(visit, state, order)
        metrics = jax.tree.map(lambda x: x.sum(0), metrics)
    is_sum = lambda leaf: isinstance(leaf, WeightedSum)  # noqa: E731
    means = jax.tree.map(lambda leaf: leaf.mean(), metrics, is_leaf=is_sum)
    if batch.value is not None:
        means["explained_variance"] = explained_variance(batch.value, batch.returns, batch.mask)
    controls = steered(learner, state.controls, batch, kl=means.get("kl"), entropy=entropy)
    means |= coefs
    state = dataclasses.replace(state, step=state.step + 1, controls=controls)
    return constrain_state(learner, state), means


def minibatch_order(seed: int, step: int, *, prompts: int, minibatches: int, epochs: int) -> np.ndarray:
    """Returns the prompts of every minibatch `[epochs * minibatches, prompts / minibatches]`, shuffled per epoch.

    A function of its arguments, so that a resumed run shuffles as the first one did.
    """
    random = np.random.default_rng([seed, step])
    order = [random.permutation(prompts) for _ in range(epochs)]
    return np.concatenate(order).reshape(epochs * minibatches, -1).astype(np.int32)


def loss(
    learner: Learner, params: Params, reference: Params | None, batch: TokenBatch, coefs: Coefs | None = None
) -> tuple[WeightedSum, dict[str, WeightedSum]]:
    """Returns the objective on a batch, not yet divided, and its metrics.

    Gradient: with respect to `params` alone; the reference and everything in the batch are constants.
    """
    objective = learner.objective
    against = divergence = None
    if batch.ref_hidden is not None:
        against = jax.lax.stop_gradient((batch.ref_hidden, head(learner.model, reference)))
        divergence = objective.kl.divergence
    scored = token_logprobs(
        hidden_states(learner.model, params, batch.prompt, batch.tokens),
        head(learner.model, params),
        batch.tokens,
        temperature=learner.temperature,
        chunk=learner.logprob_chunk,
        soft_cap=learner.model.final_cap,
        entropy=objective.needs_entropy,
        reference=against,
        divergence=divergence,
    )
    total, metrics = policy_loss(
        objective,
        logp=scored.logp,
        mask=batch.mask,
        advantage=batch.advantage,
        old_logp=batch.old_logp,
        sampler_logp=batch.sampler_logp if objective.correction is not None else None,
        ref_logp=batch.ref_logp,
        divergence=scored.divergence,
        entropy=scored.entropy,
        selected=batch.selected,
        coefs=coefs,
    )
    metrics["loss"] = total
    # The mean of -log pi over drawn tokens estimates the entropy without reading the vocabulary.
    metrics.setdefault("entropy", token_mean(-scored.logp, batch.mask))
    if batch.sampler_logp is not None:
        old_logp = scored.logp if batch.old_logp is None else batch.old_logp
        metrics["sampler_gap"] = token_mean(jnp.abs(old_logp - batch.sampler_logp), batch.mask)
    return total, jax.lax.stop_gradient(metrics)


def gradient(
    learner: Learner,
    params: Params,
    reference: Params | None,
    batch: TokenBatch,
    coefs: Coefs | None = None,
    *,
    base: Params | None = None,
) -> tuple[Params, dict[str, WeightedSum]]:
    """Returns the gradient of the mean loss over a minibatch, and its metrics, one micro-batch at a time.

    Args:
      params: what is trained, which the gradient is taken with respect to.
      base: the weights that `params` adapt, where they are adapters.
    """
    of_part = lambda params, part: loss(learner, whole(learner, params, base), reference, part, coefs)  # noqa: E731
    return _mean_gradient(learner, of_part, params, batch, "loss")


def _mean_gradient(
    learner: Learner, loss: Callable[..., Any], params: Any, batch: TokenBatch, name: str
) -> tuple[Any, dict[str, WeightedSum]]:
    """Returns the gradient of a loss, the metric `name`, and all its metrics.

    Totals and weights are summed over micro-batches and divided once, so the cut does not matter.
    """

    def total(params: Any, part: TokenBatch) -> tuple[jax.Array, dict[str, WeightedSum]]:
        value, metrics = loss(params, part)
        return value.total, metrics

    partial = jax.grad(total, has_aux=True)
    parts = learner.micro_batches(batch.tokens.shape[0])
    if parts == 1:
        summed, metrics = partial(params, batch)
    else:
        pieces = split(batch, parts)
        shapes = jax.eval_shape(partial, params, jax.tree.map(lambda x: x[0], pieces))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        add = lambda sums, part: (jax.tree.map(jnp.add, sums, partial(params, part)), None)  # noqa: E731
        (summed, metrics), _ = jax.lax.scan(add, zeros, pieces)
    weight = metrics[name].weight
    scale = jnp.where(weight == 0, 0.0, 1 / jnp.where(weight == 0, 1.0, weight))
    return jax.tree.map(lambda g: g * scale, summed), metrics


def _update(
    learner: Learner, state: TrainState, batch: TokenBatch, coefs: Coefs
) -> tuple[TrainState, dict[str, WeightedSum]]:
    gradients, metrics = gradient(learner, state.params, reference_params(state), batch, coefs, base=state.base)
    updates, opt_state = learner.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["grad_norm"] = WeightedSum(optax.tree.norm(gradients), jnp.ones(()))
    critic = state.critic
    if critic is not None:
        critic, more = _update_critic(learner, critic, batch)
        metrics |= more
    return dataclasses.replace(state, params=params, opt_state=opt_state, critic=critic), metrics


def _update_critic(learner: Learner, critic: Critic, batch: TokenBatch) -> tuple[Critic, dict[str, WeightedSum]]:
    gradients, metrics = _mean_gradient(
        learner, lambda params, part: critic_loss(learner, params, part), critic.params, batch, "value_loss"
    )
    updates, opt_state = optimizer(learner).update(gradients, critic.opt_state, critic.params)
    params = optax.apply_updates(critic.params, updates)
    metrics["critic_grad_norm"] = WeightedSum(optax.tree.norm(gradients), jnp.ones(()))
    return Critic(params=params, opt_state=opt_state), metrics

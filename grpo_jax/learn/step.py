"""The stateless training step: state and batch in, state and metrics out.

`update` is `gradient`, then `apply`, once for each minibatch. All three are pure, and none is compiled here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from grpo_jax.core.aggregate import token_mean
from grpo_jax.core.logprobs import token_logprobs
from grpo_jax.core.objective import policy_loss
from grpo_jax.core.value import explained_variance
from grpo_jax.learn.controllers import Coefs, after_step, effective_coefs
from grpo_jax.learn.critic import Critic, critic_loss, critic_optimizer
from grpo_jax.learn.learner import Learner
from grpo_jax.learn.microbatch import split
from grpo_jax.learn.state import TrainState, constrain_state, full_params, reference_params
from grpo_jax.models.decoder import Params, head, hidden_states
from grpo_jax.types import TokenBatch, WeightedSum

Metrics = dict[str, Any]


Gradients = dict[str, Any]
"""`policy`: of the mean loss, with respect to what is trained; `critic`: of its own mean loss, where there is one."""


def update(
    learner: Learner, state: TrainState, batch: TokenBatch, order: Int[Array, "N M"] | None = None
) -> tuple[TrainState, Metrics]:
    """Returns the state after all updates on a batch, and the means of their metrics.

    Each row of `order` is one minibatch: one gradient, whose denominators are those of the whole minibatch, and one
    optax update. Coefficients that adapt hold still until the last of them.

    Args:
      order: prompts of each minibatch, epoch after epoch (`minibatch_order`). None is one minibatch of all.

    Raises:
      ValueError: the learner makes several updates per batch, and there is no order.
    """
    if order is None and learner.updates.updates > 1:
        raise ValueError(
            f"order: None, but a batch has {learner.updates.updates} updates (minibatches * epochs); pass "
            "minibatch_order(seed, step, prompts=, minibatches=, epochs=)"
        )
    coefs, entropy = effective_coefs(learner, state, batch)

    def visit(state: TrainState, index: Int[Array, "M"]) -> tuple[TrainState, dict[str, WeightedSum]]:
        return one_update(state, jax.tree.map(lambda x: x[index], batch))

    def one_update(state: TrainState, batch: TokenBatch) -> tuple[TrainState, dict[str, WeightedSum]]:
        gradients, metrics = gradient(learner, state, batch, coefs)
        return apply(learner, state, gradients), metrics

    if order is None or order.shape[0] == 1:
        state, metrics = one_update(state, batch)
    else:
        state, metrics = jax.lax.scan(visit, state, order)
        metrics = jax.tree.map(lambda x: x.sum(0), metrics)
    means = {name: metric.mean() for name, metric in metrics.items()}
    if batch.value is not None:
        means["explained_variance"] = explained_variance(batch.value, batch.returns, batch.mask)
    controls = after_step(learner, state.controls, batch, kl=means.get("kl"), entropy=entropy)
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


def gradient(
    learner: Learner, state: TrainState, batch: TokenBatch, coefs: Coefs | None = None
) -> tuple[Gradients, dict[str, WeightedSum]]:
    """Returns the gradients of the mean losses over a minibatch, and their metrics, one micro-batch at a time.

    Args:
      coefs: the coefficients that adapt, as they are in this step; None reads them from the state.
    """
    if coefs is None:
        coefs, _ = effective_coefs(learner, state, batch)
    reference = reference_params(state)

    def policy(params: Params, part: TokenBatch) -> tuple[WeightedSum, dict[str, WeightedSum]]:
        return loss(learner, full_params(learner, params, state.base), reference, part, coefs)

    gradients, metrics = _mean_gradient(learner, policy, state.params, batch, "loss")
    metrics["grad_norm"] = WeightedSum(optax.tree.norm(gradients), jnp.ones(()))
    if state.critic is None:
        return {"policy": gradients}, metrics

    def critic(params: dict[str, Any], part: TokenBatch) -> tuple[WeightedSum, dict[str, WeightedSum]]:
        return critic_loss(learner, params, part)

    of_critic, more = _mean_gradient(learner, critic, state.critic.params, batch, "value_loss")
    more["critic_grad_norm"] = WeightedSum(optax.tree.norm(of_critic), jnp.ones(()))
    return {"policy": gradients, "critic": of_critic}, metrics | more


def apply(learner: Learner, state: TrainState, gradients: Gradients) -> TrainState:
    """Returns the state after one optax update of the policy, and of the critic if there is one."""
    params, opt_state = _stepped(learner.optimizer, gradients["policy"], state.opt_state, state.params)
    critic = state.critic
    if critic is not None:
        moved = _stepped(critic_optimizer(learner), gradients["critic"], critic.opt_state, critic.params)
        critic = Critic(params=moved[0], opt_state=moved[1])
    return dataclasses.replace(state, params=params, opt_state=opt_state, critic=critic)


def loss(
    learner: Learner, params: Params, reference: Params | None, batch: TokenBatch, coefs: Coefs | None = None
) -> tuple[WeightedSum, dict[str, WeightedSum]]:
    """Returns the objective on a batch, not yet divided, and its metrics.

    Gradient: with respect to `params` alone; the reference and everything in the batch are constants.
    """
    objective, model = learner.objective, learner.model
    against = divergence = None
    if batch.ref_hidden is not None:
        against = jax.lax.stop_gradient((batch.ref_hidden, head(model, reference)))
        divergence = objective.kl.divergence
    scored = token_logprobs(
        hidden_states(model, params, batch.prompt, batch.tokens),
        head(model, params),
        batch.tokens,
        temperature=model.temperature,
        chunk=model.logprob_chunk,
        soft_cap=model.final_cap,
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
    parts = learner.updates.micro_batches(batch.tokens.shape[0])
    if parts == 1:
        summed, metrics = partial(params, batch)
    else:
        pieces = split(batch, parts)
        shapes = jax.eval_shape(partial, params, jax.tree.map(lambda x: x[0], pieces))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(sums: Any, part: TokenBatch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, partial(params, part)), None

        (summed, metrics), _ = jax.lax.scan(add, zeros, pieces)
    weight = metrics[name].weight
    scale = jnp.where(weight == 0, 0.0, 1 / jnp.where(weight == 0, 1.0, weight))
    return jax.tree.map(lambda g: g * scale, summed), metrics


def _stepped(optimizer: optax.GradientTransformation, gradients: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

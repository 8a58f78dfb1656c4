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

from grpo_jax.core.value import explained_variance
from grpo_jax.learn.controllers import Coefs, after_step, effective_coefs
from grpo_jax.learn.critic import Critic, critic_optimizer
from grpo_jax.learn.layout import Cells, Layout, fold
from grpo_jax.learn.learner import Learner
from grpo_jax.learn.losses import Loss, Metrics, critic_part, policy_part
from grpo_jax.learn.scoring import padded_layout
from grpo_jax.learn.state import TrainState, constrain_state, full_params, reference_params
from grpo_jax.models.decoder import Params
from grpo_jax.types import TokenBatch, WeightedSum

Gradients = dict[str, Any]
"""`policy`: of the mean loss, with respect to what is trained; `critic`: of its own mean loss, where there is one."""


def update(
    learner: Learner,
    state: TrainState,
    batch: TokenBatch,
    order: Int[Array, "N M"] | None = None,
    layout: Layout | None = None,
) -> tuple[TrainState, Metrics]:
    """Returns the state after all updates on a batch, and the means of their metrics.

    Each row of `order` is one minibatch: one gradient, whose denominators are those of the whole minibatch, and one
    optax update. Coefficients that adapt hold still until the last of them.

    Args:
      order: prompts of each minibatch, epoch after epoch (`minibatch_order`). None is one minibatch of all.
      layout: the tokens that are computed, and in which micro-batches (`pack`): where there are several minibatches,
        one for each, along a first axis. None computes every position, padding too, in micro-batches of
        `learner.updates.micro_prompts` prompts.

    Raises:
      ValueError: the learner makes several updates per batch, and there is no order.
    """
    if order is None and learner.updates.updates > 1:
        raise ValueError(
            f"order: None, but a batch has {learner.updates.updates} updates (minibatches * epochs); pass "
            "minibatch_order(seed, step, prompts=, minibatches=, epochs=)"
        )
    coefs, entropy = effective_coefs(learner, state, batch)

    def visit(state: TrainState, minibatch: tuple[Any, Layout | None]) -> tuple[TrainState, dict[str, WeightedSum]]:
        index, layout = minibatch
        part = batch if index is None else jax.tree.map(lambda x: x[index], batch)
        gradients, metrics = gradient(learner, state, part, coefs, layout)
        return apply(learner, state, gradients), metrics

    if order is None or order.shape[0] == 1:
        state, metrics = visit(state, (None, layout))
    else:
        state, metrics = jax.lax.scan(visit, state, (order, layout))
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
    learner: Learner, state: TrainState, batch: TokenBatch, coefs: Coefs | None = None, layout: Layout | None = None
) -> tuple[Gradients, dict[str, WeightedSum]]:
    """Returns the gradients of the mean losses over a minibatch, and their metrics, one micro-batch at a time.

    Args:
      coefs: the coefficients that adapt, as they are in this step; None reads them from the state.
      layout: the tokens that are computed, and in which micro-batches; None computes every position.
    """
    if coefs is None:
        coefs, _ = effective_coefs(learner, state, batch)
    if layout is None:
        layout = padded_layout(batch.prompt, batch.tokens, learner.updates.micro_prompts)
    reference = reference_params(state)

    def policy(params: Params, *where: Any) -> Loss:
        return policy_part(learner, full_params(learner, params, state.base), reference, batch, coefs, *where)

    gradients, metrics = _mean_gradient(policy, state.params, layout, "loss")
    metrics["grad_norm"] = WeightedSum(optax.tree.norm(gradients), jnp.ones(()))
    if state.critic is None:
        return {"policy": gradients}, metrics

    def critic(params: dict[str, Any], *where: Any) -> Loss:
        return critic_part(learner, params, batch, *where)

    of_critic, more = _mean_gradient(critic, state.critic.params, layout, "value_loss")
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


def _mean_gradient(
    part: Callable[..., Loss], params: Any, layout: Layout, name: str
) -> tuple[Any, dict[str, WeightedSum]]:
    """Returns the gradient of a loss, the metric `name`, and all its metrics.

    Totals and weights are summed over micro-batches and divided once, so the cut does not matter.

    Args:
      part: `(params, size, cells)` to what a micro-batch adds to the loss.
    """

    def total(params: Any, cells: Cells) -> tuple[jax.Array, dict[str, WeightedSum]]:
        value, metrics = part(params, layout.size, cells)
        return value.total, metrics

    partial = jax.grad(total, has_aux=True)
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), layout.cells)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(partial, params, first))

    def add(sums: Any, cells: Cells) -> Any:
        return jax.tree.map(jnp.add, sums, partial(params, cells))

    summed, metrics = fold(layout, add, zeros)
    weight = metrics[name].weight
    scale = jnp.where(weight == 0, 0.0, 1 / jnp.where(weight == 0, 1.0, weight))
    return jax.tree.map(lambda g: g * scale, summed), metrics


def _stepped(optimizer: optax.GradientTransformation, gradients: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

"""The state of training: one pytree, in and out of every step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from grpo_jax.mesh import specs
from grpo_jax.models import init, logical_axes
from grpo_jax.models.decoder import Params
from grpo_jax.train.learner import Learner


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """What an update reads and writes."""

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]
    """Steps done: rollouts, each with all its updates."""
    reference: Params | None
    """The policy that the KL term is measured against; None without a KL term."""


def init_state(learner: Learner, params: Params) -> TrainState:
    """Returns the state at step 0. The reference, if the objective has one, starts as a copy of `params`."""
    return TrainState(
        params=params,
        opt_state=learner.optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
        reference=jax.tree.map(jnp.copy, params) if learner.objective.needs_reference else None,
    )


def renew_reference(state: TrainState) -> TrainState:
    """Returns the state with the current policy as its reference (DeepSeek-R1: every 400 steps)."""
    return dataclasses.replace(state, reference=jax.tree.map(jnp.copy, state.params))


def state_specs(learner: Learner) -> TrainState:
    """Returns the partition of every leaf of the state: optimizer moments lie where their parameters lie."""
    params = specs(logical_axes(learner.model))
    abstract = _abstract(learner)
    opt_state = optax.tree_map_params(
        learner.optimizer,
        lambda _, partition: partition,
        abstract.opt_state,
        params,
        transform_non_params=lambda _: PartitionSpec(),
    )
    reference = None if abstract.reference is None else params
    return TrainState(params=params, opt_state=opt_state, step=PartitionSpec(), reference=reference)


def abstract_state(learner: Learner, mesh: jax.sharding.Mesh) -> Any:
    """Returns shape, dtype and sharding of every leaf of the state: what a checkpoint is restored into."""

    def leaf(value: jax.ShapeDtypeStruct, partition: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=NamedSharding(mesh, partition))

    return jax.tree.map(leaf, _abstract(learner), state_specs(learner))


def constrain_state(learner: Learner, state: TrainState) -> TrainState:
    """Returns the state laid out on the mesh in force; unchanged without one."""
    if jax.sharding.get_abstract_mesh().empty:
        return state
    return jax.lax.with_sharding_constraint(state, state_specs(learner))


def _abstract(learner: Learner) -> TrainState:
    return jax.eval_shape(lambda: init_state(learner, init(learner.model, jax.random.key(0))))

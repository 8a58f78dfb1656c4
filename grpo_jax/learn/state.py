"""The state of training: one pytree, in and out of every step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from grpo_jax.core.control import mixed_reference
from grpo_jax.learn.critic import Critic, critic_optimizer, init_critic
from grpo_jax.learn.learner import Learner
from grpo_jax.mesh.rules import specs
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Params, cast_params, init, logical_axes
from grpo_jax.models.lora import attach, init_lora, lora_axes
from grpo_jax.models.settings import Lora


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """What an update reads and writes."""

    params: Params
    """What is trained: the weights, or adapters."""
    opt_state: optax.OptState
    step: Int[Array, ""]
    """Steps done: rollouts, each with all its updates."""
    reference: Params | None
    """The policy that the KL term is measured against; None without a KL term, and where it is `base`."""
    base: Params | None = None
    """The weights that adapters change, which never change themselves; None without adapters."""
    critic: Critic | None = None
    """What expects rewards; None where the objective has no critic."""
    controls: dict[str, Float[Array, ""]] = dataclasses.field(default_factory=dict)
    """The coefficients that adapt, by the objective's field."""


def init_state(learner: Learner, params: Params, key: jax.Array | None = None) -> TrainState:
    """Returns the state at step 0. Reference and critic, if the objective has them, start as copies of `params`.

    What is not trained is held in the dtype in which it is used. With adapters that is the base, which is the reference
    too. A critic is a whole decoder even then.

    Args:
      params: the policy's weights.
      key: draws the adapters.

    Raises:
      ValueError: adapters without a key.
    """
    objective, lora = learner.objective, learner.lora
    if lora is not None and key is None:
        raise ValueError("key: None; adapters are drawn from it, so a learner with lora needs one")
    trained = params if lora is None else init_lora(learner.model, lora, key)
    frozen = cast_params(learner.model, params)
    return TrainState(
        params=trained,
        opt_state=learner.optimizer.init(trained),
        step=jnp.zeros((), jnp.int32),
        reference=jax.tree.map(jnp.copy, frozen) if objective.needs_reference and lora is None else None,
        base=None if lora is None else frozen,
        critic=init_critic(learner, params) if objective.needs_critic else None,
        controls={name: jnp.float32(control.initial) for name, control in objective.controls.items()},
    )


def full_params(learner: Learner, trained: Params, base: Params | None) -> Params:
    """Returns the policy's parameters, of what is trained and what is not."""
    return trained if base is None else attach(base, trained, learner.lora)


def policy_params(learner: Learner, state: TrainState) -> Params:
    """Returns the policy's parameters, for every function of a model."""
    return full_params(learner, state.params, state.base)


def reference_params(state: TrainState) -> Params | None:
    """Returns the reference's parameters: with adapters, the base without them."""
    return state.reference if state.base is None else state.base


def renew_reference(state: TrainState, mix: float) -> TrainState:
    """Returns the state with its reference moved towards the policy, all the way with `mix` 1 (DeepSeek-R1)."""
    return dataclasses.replace(state, reference=mixed_reference(state.reference, state.params, mix=mix))


def state_specs(learner: Learner) -> TrainState:
    """Returns the partition of every leaf of the state: optimizer moments lie where their parameters lie."""
    model, lora = learner.model, learner.lora
    weights = specs(model.rules, logical_axes(model))
    trained = weights if lora is None else specs(model.rules, lora_axes(model, lora))
    abstract = _abstract(learner)
    critic = None
    if abstract.critic is not None:
        parts = {"decoder": weights, "output": PartitionSpec()}
        critic = Critic(params=parts, opt_state=_opt_specs(critic_optimizer(learner), abstract.critic.opt_state, parts))
    return TrainState(
        params=trained,
        opt_state=_opt_specs(learner.optimizer, abstract.opt_state, trained),
        step=PartitionSpec(),
        reference=None if abstract.reference is None else weights,
        base=None if abstract.base is None else weights,
        critic=critic,
        controls={name: PartitionSpec() for name in abstract.controls},
    )


def abstract_state(learner: Learner, mesh: jax.sharding.Mesh) -> Any:
    """Returns shape, dtype and sharding of every leaf of the state: what a checkpoint is restored into."""

    return _placed(_abstract(learner), state_specs(learner), mesh)


def abstract_policy(model: DecoderConfig, lora: Lora | None, mesh: jax.sharding.Mesh, *, base: bool) -> dict[str, Any]:
    """Returns what `abstract_state` says of the policy alone: `params`, and with `base` the weights under adapters."""
    key = jax.random.key(0)
    axes = specs(model.rules, logical_axes(model))
    parts = {"params": _placed(jax.eval_shape(lambda: init(model, key)), axes, mesh)}
    if lora is not None:
        adapters = jax.eval_shape(lambda: init_lora(model, lora, key))
        parts["params"] = _placed(adapters, specs(model.rules, lora_axes(model, lora)), mesh)
    if base:
        parts["base"] = _placed(jax.eval_shape(lambda: cast_params(model, init(model, key))), axes, mesh)
    return parts


def constrain_state(learner: Learner, state: TrainState) -> TrainState:
    """Returns the state laid out on the mesh in force; unchanged without one."""
    if jax.sharding.get_abstract_mesh().empty:
        return state
    return jax.lax.with_sharding_constraint(state, state_specs(learner))


def _placed(shapes: Any, partitions: Any, mesh: jax.sharding.Mesh) -> Any:
    return jax.tree.map(
        lambda value, part: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=NamedSharding(mesh, part)),
        shapes,
        partitions,
    )


def _abstract(learner: Learner) -> TrainState:
    key = jax.random.key(0)
    return jax.eval_shape(lambda: init_state(learner, init(learner.model, key), key))


def _opt_specs(optimizer: optax.GradientTransformation, opt_state: optax.OptState, params: Any) -> Any:
    return optax.tree_map_params(
        optimizer, lambda _, partition: partition, opt_state, params, transform_non_params=lambda _: PartitionSpec()
    )

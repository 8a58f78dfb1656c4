"""The learning rate of every update, the bound on the gradient, what decays, and transformations of one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.learn import OptimizerSettings, critic_matrices, make_optimizer, make_schedule, policy_matrices
from grpo_jax.models import Lora, init_lora
from grpo_jax.testing.tiny import tiny_config
from tests.rollout.small import random_params


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5, 0.0]),
    ],
)
def test_the_rate_rises_in_the_first_updates_and_falls_to_zero_at_the_last(schedule, expected):
    rate = make_schedule(learning_rate=1.0, warmup_steps=4, schedule=schedule, updates=8)
    np.testing.assert_allclose([rate(i) for i in range(9)], expected, atol=1e-6)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule: 'step'; expected one of"):
        make_schedule(learning_rate=1.0, warmup_steps=0, schedule="step", updates=8)


def test_gradients_are_scaled_to_the_bound_before_adam():
    """With eps large, AdamW's first step is -lr g / eps, so the bound is visible in it."""
    params, gradients = {"w": jnp.zeros(2)}, {"w": jnp.array([3.0, 4.0])}
    for bound, norm in ((1.0, 1.0), (None, 5.0)):
        optimizer = make_optimizer(OptimizerSettings(learning_rate=1.0, eps=1e6, max_grad_norm=bound), 1.0)
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        np.testing.assert_allclose(optax.tree.norm(updates), norm / 1e6, rtol=1e-4)


def decayed(params, matrices, **changes):
    """How much of each parameter one update takes away: with a gradient of 0, the decay alone."""
    settings = OptimizerSettings(learning_rate=0.5, weight_decay=0.1, **changes)
    optimizer = make_optimizer(settings, 0.5, matrices=matrices)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    return jax.tree.map(lambda update, x: float(jnp.abs(update + 0.05 * x).max()) == 0.0, updates, params)


EVERY = tiny_config(tied=False, qkv_bias=True, qk_norm=True, out_bias=True, post_norms=True)
EXPERTS = tiny_config(experts=4, experts_per_token=2)


@pytest.mark.parametrize("model", [EVERY, EXPERTS], ids=["every", "experts"])
def test_matrices_decay_and_norms_and_biases_do_not_whatever_their_rank(model):
    """Stacked over layers a norm has two axes and a bias up to four; the embedding has two and decays."""
    params = random_params(model)
    got = decayed(params, policy_matrices(model))
    for path, decays in jax.tree_util.tree_leaves_with_path(got):
        assert decays == (path[-1].key != "scale" and not path[-1].key.endswith("bias")), path
    assert all(jax.tree.leaves(decayed(params, None, decay="all")))


def test_the_critics_output_and_adapters_are_matrices():
    model, lora = tiny_config(), Lora(rank=2)
    critic = {"decoder": random_params(model), "output": jnp.ones(model.hidden)}
    assert decayed(critic, critic_matrices(model))["output"]
    assert not decayed(critic, critic_matrices(model))["decoder"]["norm"]["scale"]
    adapters = init_lora(model, lora, jax.random.key(0))
    assert all(jax.tree.leaves(decayed(adapters, policy_matrices(model, lora))))


def test_without_decay_a_mask_changes_nothing_not_even_the_states_structure():
    params, settings = {"w": jnp.ones(2)}, OptimizerSettings(learning_rate=0.5)
    states = [make_optimizer(settings, 0.5, matrices=mask).init(params) for mask in (None, {"w": False})]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_matrices_that_nobody_names_cannot_decay():
    with pytest.raises(ValueError, match=r"matrices: None, but optimizer\.decay is 'matrices'"):
        make_optimizer(OptimizerSettings(learning_rate=1.0, weight_decay=0.1), 1.0)


def halving(schedule):
    """A user's own transformation: descent at half of the scheduled rate."""
    return optax.scale_by_learning_rate(lambda count: 0.5 * schedule(count))


def no_transformation(schedule):
    return schedule


def test_a_transformation_of_ones_own_takes_the_place_of_adamw_behind_the_bound():
    settings = OptimizerSettings(learning_rate=1.0, transformation=f"{__name__}:halving", max_grad_norm=1.0)
    optimizer = make_optimizer(settings, optax.constant_schedule(0.2))
    params, gradients = {"w": jnp.zeros(2)}, {"w": jnp.array([3.0, 4.0])}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.06, -0.08], rtol=1e-6)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (f"{__name__}:halvng", "has no 'halvng'; did you mean 'halving'"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("adafactor", "write 'package.module:name'"),
        (f"{__name__}:no_transformation", "returns a .*; expected an optax.GradientTransformation"),
    ],
)
def test_a_transformation_that_is_none_is_refused(target, message):
    settings = OptimizerSettings(learning_rate=1.0, transformation=target)
    with pytest.raises(ValueError, match=f"optimizer.transformation: .*{message}"):
        make_optimizer(settings, optax.constant_schedule(1.0))

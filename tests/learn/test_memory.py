"""What a run keeps in fewer bits, and that it computes the same: the reference, the moments, what is rematerialised."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.core import grpo
from grpo_jax.learn import OptimizerSettings, score
from grpo_jax.learn.optimizer import make_optimizer
from grpo_jax.learn.state import init_state, renew_reference
from grpo_jax.models import init
from grpo_jax.testing.tiny import tiny_config, tiny_prompts
from tests.learn.small import learner
from tests.rollout.small import quick_jit, random_params

TOKENS = np.random.default_rng(0).integers(0, 23, (4, 3, 7))


def of_model(**changes):
    return learner(grpo(), model=tiny_config(**changes), optimizer=optax.sgd(0.1))


def test_the_reference_is_held_in_the_dtype_in_which_it_is_used():
    one = of_model(dtype="bfloat16", tied=False, qkv_bias=True)
    state = jax.eval_shape(lambda: init_state(one, init(one.model, jax.random.key(0))))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    kinds = {
        jax.tree_util.keystr(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(state.reference)
    }
    for path, dtype in kinds.items():
        expected = "float32" if "scale" in path else "bfloat16"
        assert dtype == expected, path
    renewed = jax.eval_shape(lambda state: renew_reference(state, 0.5), state)
    chex.assert_trees_all_equal_dtypes(renewed.reference, state.reference)


def test_a_policy_and_its_reference_score_alike_at_the_start():
    """Rounding once for all changes nothing: the policy rounds embedding, matrices and head each time it uses them."""
    one = of_model(dtype="bfloat16")
    params = random_params(one.model)
    state = init_state(one, params)
    scores = quick_jit(score, static_argnums=0)
    ours, theirs = (scores(one.model, p, tiny_prompts(), TOKENS).logp for p in (state.params, state.reference))
    np.testing.assert_array_equal(ours, theirs)


def test_the_first_moment_may_be_bfloat16_and_the_second_stays():
    """One step of Adam divides a gradient by its own size: the update is the learning rate, in either type."""
    params = {"w": jnp.array([1.0, -2.0])}
    gradient = {"w": jnp.array([0.3, -0.7])}
    updates = {}
    for dtype in ("float32", "bfloat16"):
        optimizer = make_optimizer(OptimizerSettings(learning_rate=1e-2, moment_dtype=dtype, max_grad_norm=None), 1e-2)
        state = optimizer.init(params)
        (adam,) = (part for part in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu"))
        assert adam.mu["w"].dtype == dtype
        assert adam.nu["w"].dtype == jnp.float32
        updates[dtype] = optimizer.update(gradient, state, params)[0]["w"]
    np.testing.assert_allclose(updates["float32"], [-0.01, 0.01], rtol=1e-5)
    np.testing.assert_allclose(updates["bfloat16"], [-0.01, 0.01], rtol=1e-2)


@pytest.mark.parametrize("remat", ["dots", "layer"])
def test_rematerialisation_changes_no_gradient(remat):
    plain = of_model()
    params = random_params(plain.model)

    def loss(params, one):
        return score(one.model, params, tiny_prompts(), TOKENS).logp.sum()

    gradient = quick_jit(jax.grad(loss), static_argnums=1)
    saved = dataclasses.replace(plain, model=dataclasses.replace(plain.model, remat=remat))
    chex.assert_trees_all_close(gradient(params, saved), gradient(params, plain), rtol=1e-4, atol=1e-5)


def test_the_reference_shares_no_memory_with_what_an_update_overwrites():
    one = of_model()
    state = init_state(one, random_params(one.model))
    for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.reference), strict=True):
        assert ours.unsafe_buffer_pointer() != theirs.unsafe_buffer_pointer()

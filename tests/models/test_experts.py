"""Routing by hand, and the laws of a layer of experts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from grpo_jax.mesh import fetch, make_mesh, specs
from grpo_jax.models import hidden_states, logical_axes, unpacked
from grpo_jax.models.experts import route
from grpo_jax.testing.tiny import tiny_config, tiny_prompts
from tests.rollout.small import quick_jit, random_params

LOGITS = np.log([[0.5, 0.1, 0.3, 0.1], [0.05, 0.05, 0.1, 0.8]])


@pytest.mark.parametrize(
    ("normalised", "expected"),
    [(False, [[0.5, 0.3], [0.8, 0.1]]), (True, [[0.5 / 0.8, 0.3 / 0.8], [0.8 / 0.9, 0.1 / 0.9]])],
)
def test_a_token_goes_to_its_most_likely_experts(normalised, expected):
    weights, experts = route(jnp.asarray(LOGITS), jnp.eye(4), top_k=2, normalised=normalised)
    assert experts.tolist() == [[0, 2], [3, 2]]
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_the_gradient_of_a_routing_weight_is_that_of_the_softmax():
    """d p_0 / d z = p_0 (onehot_0 - p), also for experts that were not chosen."""
    slope = jax.grad(lambda z: route(z, jnp.eye(4), top_k=2, normalised=False)[0][0, 0])(jnp.asarray(LOGITS[:1]))
    p = np.exp(LOGITS[0])
    np.testing.assert_allclose(slope[0], p[0] * (np.eye(4)[0] - p), rtol=1e-5, atol=1e-7)


def test_routing_is_decided_in_float32():
    """In bfloat16 both products would be 1."""
    x, router = jnp.array([[1.0, 1.0]], "bfloat16"), jnp.array([[1.0, 1.0], [0.0, 2**-9]], "bfloat16")
    weights, experts = route(x, router, top_k=1, normalised=False)
    assert experts.tolist() == [[1]]
    assert weights.dtype == jnp.float32


def test_experts_spread_over_devices_are_the_experts_of_one():
    config = tiny_config(vocab=24, mlp=8, experts=4, experts_per_token=2, normalised_routing=True)
    params, prompt = random_params(config), tiny_prompts((5, 1, 3, 6))
    tokens = jax.random.randint(jax.random.key(1), (4, 2, 5), 0, 23)
    weight = jax.random.normal(jax.random.key(2), (4, 2, 5, config.hidden))

    def value(params):
        return (hidden_states(config, params, unpacked(prompt, tokens)) * weight).sum()

    results = [quick_jit(jax.value_and_grad(value))(params)]
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        partitions = specs(config.rules, logical_axes(config))
        placed = jax.tree.map(lambda x, part: jax.device_put(x, NamedSharding(mesh, part)), params, partitions)
        assert placed["layers"]["mlp"]["gate"].addressable_shards[0].data.shape == (2, 2, 8, 8)
        results.append(fetch(quick_jit(jax.value_and_grad(value))(placed)))
    (one, one_gradient), (many, many_gradient) = results
    np.testing.assert_allclose(many, one, rtol=1e-5)
    for path, gradient in jax.tree.leaves_with_path(one_gradient):
        other = many_gradient
        for key in path:
            other = other[key.key]
        np.testing.assert_allclose(other, gradient, atol=2e-4 * float(jnp.abs(gradient).max()), err_msg=str(path))

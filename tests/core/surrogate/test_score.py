import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from grpo_jax.core.surrogate import reinforce


def gradient(surrogate, logp, advantage):
    return jax.grad(lambda x: jnp.sum(surrogate(x, x, advantage)[0]))(logp)


def test_reinforce_is_minus_advantage_times_logp():
    logp, advantage = jnp.array([-1.0, -2.0]), jnp.array([3.0, -0.5])
    loss, clipped = reinforce(jnp.full(2, jnp.nan), logp, advantage)
    np.testing.assert_array_equal(loss, [3.0, -1.0])
    np.testing.assert_array_equal(clipped, False)
    np.testing.assert_array_equal(gradient(reinforce, logp, advantage), -advantage)


def test_gradient_is_numerical_in_float64(float64):
    logp, advantage = jnp.array([-1.0, -0.1, -3.0]), jnp.array([2.0, -1.0, 0.0])
    check_grads(lambda x: reinforce(jnp.zeros(3), x, advantage)[0], (logp,), order=1, modes=["rev"])


class JitEqualsEager(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_loss(self):
        loss, clipped = self.variant(reinforce)(jnp.zeros(2), jnp.array([-1.0, -2.0]), jnp.array([1.0, -3.0]))
        chex.assert_trees_all_close(loss, jnp.array([1.0, -6.0]))
        assert not clipped.any()


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match=r"advantage has shape \(2, 1\), but log_ratio has shape \(2, 3\)"):
        reinforce(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros((2, 1)))

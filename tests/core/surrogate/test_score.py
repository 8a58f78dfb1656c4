import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from grpo_jax.core.surrogate import reinforce


def gradient(logp, advantage):
    """Returns dL/dlogp of each token."""
    return jax.grad(lambda x: jnp.sum(reinforce(jnp.zeros_like(x), x, advantage)[0]))(logp)


def test_reinforce_is_minus_advantage_times_logp():
    """L = -A log pi, so dL/dlog pi = -A: at every ratio, ratio 1 included."""
    logp, advantage = jnp.array([-1.0, -2.0]), jnp.array([3.0, -0.5])
    loss, clipped = reinforce(jnp.full(2, jnp.nan), logp, advantage)
    np.testing.assert_array_equal(loss, [3.0, -1.0])
    np.testing.assert_array_equal(clipped, False)
    np.testing.assert_array_equal(gradient(logp, advantage), -advantage)


class JitEqualsEager(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_all(self):
        logp, advantage = jnp.linspace(-3.0, -1.0, 9), jnp.where(jnp.arange(9) % 2, 1.0, -1.0)
        loss, clipped = self.variant(reinforce)(logp, logp, advantage)
        chex.assert_trees_all_close(loss, -np.asarray(advantage) * np.asarray(logp), rtol=1e-6)
        assert clipped.dtype == bool


def test_gradients_are_numerical_in_float64(float64):
    logp, advantage = jnp.array([-1.0, -0.1, -3.0]), jnp.array([2.0, -2.0, 0.5])
    check_grads(lambda x: reinforce(x, x, advantage)[0], (logp,), order=1, modes=["rev"])


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match=r"advantage has shape \(2, 1\), but log_ratio has shape \(2, 3\)"):
        reinforce(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"logp has shape \(3,\), but log_ratio has shape \(2, 3\)"):
        reinforce(jnp.zeros((2, 3)), jnp.zeros(3), jnp.zeros((2, 3)))

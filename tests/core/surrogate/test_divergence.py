import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from grpo_jax.core.surrogate import Dppo, binary_kl, binary_tv
from grpo_jax.testing import oracle

PROBABILITIES = st.floats(0.015625, 0.984375, width=32)


@settings(max_examples=60, deadline=None)
@given(PROBABILITIES, PROBABILITIES)
def test_divergences_equal_the_oracle(prob, old_prob):
    logp, old_logp = jnp.log(jnp.array([prob, old_prob], jnp.float32))
    np.testing.assert_allclose(binary_tv(logp, old_logp), oracle.binary_tv(prob, old_prob), atol=2e-6)
    np.testing.assert_allclose(binary_kl(logp, old_logp), oracle.binary_kl(prob, old_prob), rtol=1e-4, atol=2e-6)


def test_both_are_0_at_equality_and_bound_those_over_the_vocabulary_from_below():
    rng = np.random.default_rng(0)
    logp, old_logp = (jax.nn.log_softmax(jnp.asarray(rng.normal(size=(50, 7)) * 2)) for _ in range(2))
    np.testing.assert_allclose(binary_tv(logp, logp), 0.0, atol=1e-7)
    np.testing.assert_allclose(binary_kl(logp, logp), 0.0, atol=1e-6)
    tv = 0.5 * jnp.abs(jnp.exp(logp) - jnp.exp(old_logp)).sum(-1, keepdims=True)
    kl = (jnp.exp(old_logp) * (old_logp - logp)).sum(-1, keepdims=True)
    assert (binary_tv(logp, old_logp) <= tv + 1e-6).all()
    assert (binary_kl(logp, old_logp) <= kl + 1e-5).all()


@pytest.mark.parametrize(("logp", "old_logp", "expected"), [(-0.5, 0.0, 0.5), (0.0, -0.5, math.inf), (0.0, 0.0, 0.0)])
def test_certain_tokens(logp, old_logp, expected):
    assert binary_kl(jnp.float32(logp), jnp.float32(old_logp)) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(PROBABILITIES, PROBABILITIES, st.sampled_from([2.0, 0.0, -1.5]), st.sampled_from([0.05, 0.2]))
def test_losses_equal_the_oracle(prob, old_prob, advantage, limit):
    for ours, theirs in ((binary_tv, oracle.binary_tv), (binary_kl, oracle.binary_kl)):
        if abs(theirs(prob, old_prob) - limit) < 1e-5:
            continue
        logp, old_logp = jnp.log(jnp.array([[prob], [old_prob]], jnp.float32))
        surrogate = Dppo(limit=limit, divergence=ours)
        loss, _ = surrogate(logp - old_logp, logp, jnp.array([advantage]), old_logp=old_logp)
        expected = oracle.dppo(prob, old_prob, advantage, limit=limit, divergence=theirs)
        np.testing.assert_allclose(loss, [expected], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("prob", "advantage", "flat"),
    [
        (0.45, 1.0, False),  # away, within the limit
        (0.75, 1.0, True),  # away, beyond
        (0.75, -1.0, False),  # back towards the old policy, however far
        (0.05, 1.0, False),
        (0.05, -1.0, True),
        (0.35, -1.0, False),
        (0.4, 1.0, False),  # r = 1
    ],
)
def test_gradient_by_hand(prob, advantage, flat):
    """mu = 0.4 and a limit of 0.2 in total variation: L = -r A where the mask is 1, so dL/dlogp = -r A, else 0."""
    logp, old_logp = jnp.log(jnp.array([[prob], [0.4]]))
    run = lambda p: Dppo(limit=0.2)(p - old_logp, p, jnp.array([advantage]), old_logp=old_logp)[0].sum()  # noqa: E731
    slope = jax.grad(run)(logp)
    np.testing.assert_allclose(slope, [0.0 if flat else -prob / 0.4 * advantage], rtol=1e-5)
    if flat:
        np.testing.assert_array_equal(slope, 0.0)
    assert bool(Dppo(limit=0.2)(logp - old_logp, logp, jnp.array([advantage]), old_logp=old_logp)[1][0]) == flat


def test_a_small_probability_may_move_by_a_large_ratio():
    """From 0.001 to 0.01 the ratio is 10, which PPO would clip, and the total variation 0.009."""
    logp, old_logp = jnp.log(jnp.array([[0.01], [0.001]]))
    loss, masked = Dppo(limit=0.1)(logp - old_logp, logp, jnp.ones(1), old_logp=old_logp)
    np.testing.assert_allclose(loss, [-10.0], rtol=1e-5)
    assert not masked[0]


def test_what_is_masked_never_overflows():
    run = lambda s: Dppo(limit=0.1)(s, jnp.array([-0.1]), jnp.ones(1), old_logp=jnp.array([-400.0]))[0].sum()  # noqa: E731
    value, slope = jax.value_and_grad(run)(jnp.array([399.9]))
    assert value == 0.0
    np.testing.assert_array_equal(slope, 0.0)


def test_gradient_is_numerical_in_float64(float64):
    old_logp, advantage = jnp.log(jnp.array([0.4, 0.4, 0.1, 0.9])), jnp.array([1.0, -1.0, 2.0, -2.0])
    logp = jnp.log(jnp.array([0.5, 0.1, 0.12, 0.85]))
    for divergence in (binary_tv, binary_kl):
        run = lambda p, d=divergence: Dppo(limit=0.15, divergence=d)(p - old_logp, p, advantage, old_logp=old_logp)[0]  # noqa: E731
        check_grads(run, (logp,), order=1, modes=["rev"])


class JitEqualsEager(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_loss(self):
        prob, old = np.array([0.75, 0.3]), np.array([0.5, 0.4])
        surrogate = Dppo(limit=0.1, divergence=binary_kl)
        logp, old_logp = np.log(prob).astype(np.float32), np.log(old).astype(np.float32)
        loss, masked = self.variant(surrogate)(logp - old_logp, logp, np.float32([1, -1]), old_logp=old_logp)
        chex.assert_trees_all_close(loss, np.float32([0.0, 0.75]), rtol=1e-5)
        np.testing.assert_array_equal(masked, [True, False])


def test_bad_parameters_and_inputs_are_refused():
    with pytest.raises(ValueError, match="limit must be a finite number >= 0"):
        Dppo(limit=-0.1)
    zeros = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"old_logp has shape \(3,\), but log_ratio has shape \(2, 3\)"):
        Dppo(limit=0.1)(zeros, zeros, zeros, old_logp=jnp.zeros(3))
    assert Dppo(limit=0.1) == Dppo(limit=0.1, divergence=binary_tv)
    assert hash(Dppo(limit=0.1)) == hash(Dppo(limit=0.1))
    assert repr(Dppo(limit=0.1, divergence=binary_kl)) == "Dppo(limit=0.1, divergence=binary_kl)"

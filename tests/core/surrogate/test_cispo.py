import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.core.surrogate import CispoCap, CispoClip, reinforce
from grpo_jax.testing import oracle

CLIP, CAP = CispoClip(low=0.3, high=1.0), CispoCap(cap=2.0)


@settings(max_examples=60, deadline=None)
@given(st.floats(-4, 4, width=32), st.floats(-3, 3, width=32), st.floats(-5, 0, width=32))
def test_values_equal_the_oracle(log_ratio, advantage, logp):
    arguments = [jnp.array([x], jnp.float32) for x in (log_ratio, logp, advantage)]
    ratio = math.exp(log_ratio)
    expected = oracle.cispo(ratio, advantage, logp, lower=0.7, upper=2.0)
    np.testing.assert_allclose(CLIP(*arguments)[0], [expected], rtol=1e-5, atol=1e-6)
    expected = oracle.cispo(ratio, advantage, logp, upper=2.0)
    np.testing.assert_allclose(CAP(*arguments)[0], [expected], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize(
    ("log_ratio", "clip", "cap"),
    [
        (math.log(0.1), 0.7, 0.1),
        (math.log1p(-0.3), 0.7, 0.7),
        (0.0, 1.0, 1.0),
        (math.log(2.0), 2.0, 2.0),
        (3.0, 2.0, 2.0),
        (400.0, 2.0, 2.0),
    ],
)
def test_gradient_below_at_and_above_the_bounds(log_ratio, advantage, clip, cap):
    """L = -sg(w) A log pi, so dL/dlogp = -w A with w the bounded ratio, and dL/dlog_ratio = 0: no token is cut off."""
    for surrogate, weight in ((CLIP, clip), (CAP, cap)):
        loss = lambda s, p, surrogate=surrogate: surrogate(s, p, jnp.array([advantage]))[0].sum()  # noqa: E731
        slopes = jax.grad(loss, (0, 1))(jnp.array([log_ratio]), jnp.array([-2.0]))
        np.testing.assert_array_equal(slopes[0], 0.0)
        np.testing.assert_allclose(slopes[1], [-weight * advantage], rtol=1e-6)


def test_gradient_is_numerical_in_float64(float64):
    """The weight is closed over as the constant it is."""
    weight, advantage = jnp.array([0.1, 1.0, 3.0, 0.2]), jnp.array([2.0, -1.0, 0.5, -2.0])
    logp = jnp.array([-1.0, -0.5, -2.0, -3.0])
    for surrogate in (CLIP, CAP):
        jax.test_util.check_grads(
            lambda p, s=surrogate: s(jnp.log(weight), p, advantage)[0], (logp,), order=1, modes=["rev"]
        )


def test_what_is_clipped_is_what_the_bounds_replaced():
    log_ratio = jnp.log(jnp.array([0.1, 0.7001, 1.0, 1.9999, 2.1]))
    for surrogate, expected in ((CLIP, [1, 0, 0, 0, 1]), (CAP, [0, 0, 0, 0, 1])):
        np.testing.assert_array_equal(surrogate(log_ratio, log_ratio, jnp.ones(5))[1], np.array(expected, bool))


def test_without_a_lower_bound_both_readings_agree():
    log_ratio = jnp.linspace(-5, 5, 41)
    advantage = jnp.where(jnp.arange(41) % 2, 1.0, -2.0)
    one, other = CispoClip(low=1.0, high=4.0), CispoCap(cap=5.0)
    chex.assert_trees_all_close(one(log_ratio, -log_ratio, advantage), other(log_ratio, -log_ratio, advantage))


def test_at_policy_equality_it_is_reinforce():
    logp, advantage = jnp.array([-1.0, -2.0]), jnp.array([3.0, -0.5])
    for surrogate in (CLIP, CAP):
        chex.assert_trees_all_equal(surrogate(jnp.zeros(2), logp, advantage), reinforce(jnp.zeros(2), logp, advantage))


class JitEqualsEager(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_both(self):
        log_ratio = np.linspace(-2, 2, 9, dtype=np.float32)
        for surrogate, lower in ((CLIP, 0.7), (CAP, 0.0)):
            loss, _ = self.variant(surrogate)(log_ratio, log_ratio - 1, np.ones(9, np.float32))
            weight = np.clip(np.exp(np.float64(log_ratio)), lower, 2.0)
            chex.assert_trees_all_close(loss, (-weight * (log_ratio - 1)).astype(np.float32), rtol=1e-5)


def test_bad_parameters_and_shapes_are_refused():
    with pytest.raises(ValueError, match="low must be a finite number >= 0"):
        CispoClip(low=-0.1, high=1.0)
    with pytest.raises(ValueError, match="high must be a finite number >= 0"):
        CispoClip(high=float("nan"))
    with pytest.raises(ValueError, match="cap must be a finite number > 0, got 0"):
        CispoCap(cap=0.0)
    for surrogate in (CLIP, CAP):
        with pytest.raises(ValueError, match=r"advantage has shape \(1,\), but log_ratio has shape \(3,\)"):
            surrogate(jnp.zeros(3), jnp.zeros(3), jnp.zeros(1))


def test_values_hash_compare_and_print():
    assert CispoClip(high=1.0) == CispoClip(low=1.0, high=1.0)
    assert hash(CispoCap(cap=2.0)) == hash(CAP)
    assert repr(CispoCap()) == "CispoCap(cap=5.0)"

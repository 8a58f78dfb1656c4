import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from grpo_jax.core.surrogate import PpoClip, two_sided_clip
from grpo_jax.core.surrogate.clip import clipped_ratio, log_bound
from grpo_jax.testing import oracle


def gradient(surrogate, log_ratio, advantage):
    """Returns dL/dlog_ratio of each token."""
    log_ratio, advantage = jnp.asarray(log_ratio, jnp.float32), jnp.asarray(advantage, jnp.float32)
    return jax.grad(lambda x: jnp.sum(surrogate(x, x, advantage)[0]))(log_ratio)


BELOW, LOWER, INSIDE, UPPER, ABOVE, FAR = math.log(0.5), math.log1p(-0.2), 0.1, math.log1p(0.3), math.log(2), 5.0


@pytest.mark.parametrize(
    ("log_ratio", "sign", "flat"),
    [
        (BELOW, +1, False),
        (LOWER, +1, False),
        (INSIDE, +1, False),
        (UPPER, +1, False),
        (ABOVE, +1, True),
        (FAR, +1, True),
        (BELOW, -1, True),
        (LOWER, -1, False),
        (INSIDE, -1, False),
        (UPPER, -1, False),
        (ABOVE, -1, False),
        (FAR, -1, False),
    ],
)
def test_gradient_below_at_and_above_both_bounds(log_ratio, sign, flat):
    """L = -min(r A, clip(r) A), r = exp(s). Where the first is the minimum, dL/ds = -A dr/ds = -r A.

    A > 0: r A is the minimum up to r = 1 + high, whatever lies below; beyond, the minimum is constant.
    A < 0: r A is the minimum (the more negative one) from r = 1 - low on, without end; below, it is constant.
    At a bound both are equal and the unclipped one counts: an on-policy step with low = 0 must still learn.
    """
    advantage = 1.5 * sign
    actual = gradient(PpoClip(low=0.2, high=0.3), [log_ratio], [advantage])
    if flat:
        assert actual[0] == 0.0
    else:
        np.testing.assert_allclose(actual, [-math.exp(log_ratio) * advantage], rtol=1e-6)
    _, clipped = PpoClip(low=0.2, high=0.3)(*[jnp.array([log_ratio], jnp.float32)] * 2, jnp.array([advantage]))
    assert bool(clipped[0]) == flat


def test_gradient_at_policy_equality_with_bounds_of_0():
    np.testing.assert_array_equal(gradient(PpoClip(low=0.0, high=0.0), [0.0, 0.0], [2.0, -2.0]), [-2.0, 2.0])


@pytest.mark.parametrize(("log_ratio", "flat"), [(1.0, False), (math.log(3.0), False), (1.2, True), (400.0, True)])
def test_dual_clip_bounds_a_large_ratio_of_a_bad_token(log_ratio, flat):
    """A < 0: L = -max(r A, c A) = -min(r, c) A, so dL/ds = -r A up to r = c and 0 beyond."""
    surrogate = PpoClip(dual=3.0)
    actual = gradient(surrogate, [log_ratio], [-2.0])
    np.testing.assert_allclose(actual, [0.0 if flat else 2 * math.exp(log_ratio)], rtol=1e-6)
    loss, clipped = surrogate(jnp.array([log_ratio]), jnp.zeros(1), jnp.array([-2.0]))
    np.testing.assert_allclose(loss, [2 * min(math.exp(log_ratio), 3.0)], rtol=1e-6)
    assert bool(clipped[0]) == flat


def test_dual_clip_leaves_good_tokens_alone():
    np.testing.assert_allclose(gradient(PpoClip(high=9.0, dual=3.0), [math.log(5.0)], [2.0]), [-10.0], rtol=1e-6)


@pytest.mark.parametrize("log_ratio", [400.0, -400.0, 0.0])
def test_an_advantage_of_0_has_no_loss_no_gradient_and_is_not_clipped(log_ratio):
    log_ratio = jnp.array([log_ratio])
    loss, clipped = PpoClip()(log_ratio, log_ratio, jnp.zeros(1))
    assert loss[0] == 0.0
    assert not clipped[0]
    assert gradient(PpoClip(), log_ratio, [0.0])[0] == 0.0


def test_what_is_clipped_never_overflows():
    surrogate = PpoClip(low=0.2, high=0.2)
    log_ratio = jnp.array([400.0, -400.0, -400.0])
    advantage = jnp.array([1.0, -1.0, 1.0])
    np.testing.assert_allclose(surrogate(log_ratio, log_ratio, advantage)[0], [-1.2, 0.8, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(gradient(surrogate, log_ratio, advantage), 0.0)


@pytest.mark.parametrize(
    ("log_ratio", "where", "ratio", "slope", "clipped"),
    [
        (-900.0, True, 0.5, 0.0, True),
        (math.log(0.5), True, 0.5, 0.5, False),
        (0.25, True, math.exp(0.25), math.exp(0.25), False),
        (math.log(2.0), True, 2.0, 2.0, False),
        (900.0, True, 2.0, 0.0, True),
        (math.inf, True, 2.0, 0.0, True),
        (900.0, False, 1.0, 0.0, False),
        (math.nan, False, 1.0, 0.0, False),
        (math.nan, True, math.nan, math.nan, False),
    ],
)
def test_a_ratio_that_is_cut_or_not_asked_for_is_not_exponentiated(log_ratio, where, ratio, slope, clipped):
    """exp(s) within [1/2, 2] with the slope exp(s); constant outside; a NaN that is asked for is not hidden."""
    low, high = jnp.full(1, math.log(0.5)), jnp.full(1, math.log(2.0))

    def value(s):
        return clipped_ratio(s, low, high, where=jnp.array([where]))

    actual, was_clipped = value(jnp.array([log_ratio]))
    np.testing.assert_allclose(actual, [ratio], rtol=1e-6)
    assert bool(was_clipped[0]) == clipped
    np.testing.assert_allclose(jax.grad(lambda s: value(s)[0].sum())(jnp.array([log_ratio])), [slope], rtol=1e-6)


def test_without_bounds_a_ratio_is_the_exponential():
    x = jnp.linspace(-3, 3, 13)
    ratio, clipped = clipped_ratio(x, jnp.full(13, -jnp.inf), jnp.full(13, jnp.inf), where=jnp.ones(13, bool))
    np.testing.assert_array_equal(ratio, jnp.exp(x))
    assert not clipped.any()


def test_the_log_of_a_bound():
    assert log_bound(0.2) == math.log1p(0.2)
    assert log_bound(-0.2) == math.log1p(-0.2)
    assert log_bound(-1.0) == log_bound(-10.0) == -math.inf


def test_a_low_of_1_or_more_is_no_lower_bound():
    """R1's clip of 10 keeps ratios in [1 - 10, 1 + 10], and every ratio is above -9."""
    surrogate = PpoClip(low=10.0, high=10.0)
    log_ratio = jnp.array([-5.0, -5.0, math.log(10.9), math.log(11.1)])
    advantage = jnp.array([1.0, -1.0, 1.0, 1.0])
    loss, clipped = surrogate(log_ratio, log_ratio, advantage)
    np.testing.assert_allclose(loss, [-math.exp(-5), math.exp(-5), -10.9, -11.0], rtol=1e-6)
    np.testing.assert_array_equal(clipped, [False, False, False, True])


@settings(max_examples=100, deadline=None)
@given(
    st.floats(-4, 4, width=32),
    st.floats(-3, 3, width=32),
    st.sampled_from([(0.2, 0.2, None), (0.2, 0.28, 10.0), (10.0, 10.0, None), (0.0, 0.0, 1.5), (0.1, 3.0, 2.0)]),
)
def test_values_equal_the_oracle(log_ratio, advantage, bounds):
    low, high, dual = bounds
    loss, clipped = PpoClip(low=low, high=high, dual=dual)(*map(jnp.array, ([log_ratio], [0.0], [advantage])))
    ratio = math.exp(log_ratio)
    expected = oracle.ppo_clip(ratio, advantage, low=low, high=high, dual=dual)
    np.testing.assert_allclose(loss, [expected], rtol=1e-5, atol=1e-6)
    if abs(expected + ratio * advantage) > 1e-4:
        assert clipped[0]


class JitEqualsEager(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(None, 3.0)
    def test_all(self, dual):
        x = jnp.linspace(-2.0, 2.0, 9)
        advantage = jnp.where(jnp.arange(9) % 2, 1.0, -1.0)
        loss, clipped = self.variant(PpoClip(dual=dual))(x, x - 1.0, advantage)
        pairs = zip(np.exp(np.float64(x)), np.float64(advantage), strict=True)
        expected = np.array([oracle.ppo_clip(r, a, low=0.2, high=0.2, dual=dual) for r, a in pairs])
        chex.assert_trees_all_close(loss, expected.astype(np.float32), rtol=1e-5)
        assert clipped.dtype == bool


def test_gradients_are_numerical_in_float64(float64):
    """Away from the corners, where a difference quotient would see both sides."""
    log_ratio = jnp.array([-1.0, -0.1, 0.1, 1.0, -1.0, -0.1, 0.1, 1.0, 2.0])
    advantage = jnp.array([2.0, 2.0, 2.0, 2.0, -2.0, -2.0, -2.0, -2.0, -2.0])
    check_grads(lambda x: PpoClip(dual=4.0)(x, x, advantage)[0], (log_ratio,), order=1, modes=["rev"])


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match="low must be a finite number >= 0"):
        PpoClip(low=-0.1)
    with pytest.raises(ValueError, match="high must be a finite number >= 0"):
        PpoClip(high=float("nan"))
    with pytest.raises(ValueError, match="dual must be a finite number > 1 or None, got 1"):
        PpoClip(dual=1.0)


def test_unequal_shapes_are_refused():
    surrogate = PpoClip()
    with pytest.raises(ValueError, match=r"advantage has shape \(2, 1\), but log_ratio has shape \(2, 3\)"):
        surrogate(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"logp has shape \(3,\), but log_ratio has shape \(2, 3\)"):
        surrogate(jnp.zeros((2, 3)), jnp.zeros(3), jnp.zeros((2, 3)))


def test_values_hash_compare_and_print():
    assert PpoClip(low=0.1) == PpoClip(low=0.1)
    assert hash(PpoClip(dual=3.0)) == hash(PpoClip(dual=3.0))
    assert repr(PpoClip(high=0.28)) == "PpoClip(low=0.2, high=0.28, dual=None)"


@settings(max_examples=100, deadline=None)
@given(st.floats(-4, 4, width=32), st.floats(-3, 3, width=32), st.sampled_from([1.2, 1.5, 4.0]))
def test_two_sided_clip_is_its_own_formula(log_ratio, advantage, delta):
    """-min(min(r, delta) A, clip(r) A), as INTELLECT-2 and TRL write it, from delta = 1 + high on."""
    surrogate = two_sided_clip(low=0.2, high=0.2, delta=delta)
    loss, _ = surrogate(*map(jnp.array, ([log_ratio], [0.0], [advantage])))
    expected = oracle.two_sided_clip(math.exp(log_ratio), advantage, low=0.2, high=0.2, delta=delta)
    np.testing.assert_allclose(loss, [expected], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("delta", "high"), [(1.1, 0.2), (1.0, 0.0), (math.inf, 0.2), (math.nan, 0.2)])
def test_a_two_sided_clip_below_the_upper_bound_is_refused(delta, high):
    with pytest.raises(ValueError, match="delta must be a finite number > 1 and >= 1 \\+ high, got delta="):
        two_sided_clip(low=0.2, high=high, delta=delta)


def test_the_surrogate_is_a_lower_bound():
    """The clipped objective never exceeds the unclipped one: -L <= r A, with equality wherever no bound acts."""
    log_ratio, advantage = jnp.meshgrid(jnp.linspace(-2, 2, 41), jnp.array([-2.0, -0.5, 0.5, 2.0]))
    loss, clipped = PpoClip()(log_ratio, log_ratio, advantage)
    plain = jnp.exp(log_ratio) * advantage
    assert (-loss <= plain + 1e-6).all()
    np.testing.assert_allclose(-loss[~clipped], plain[~clipped], rtol=1e-6)
    assert (-loss < plain - 1e-3)[clipped].all()

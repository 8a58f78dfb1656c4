import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from grpo_jax.core.aggregate import sequence_mean
from grpo_jax.core.surrogate import GeometricMean
from grpo_jax.testing import oracle

MASK = np.array([[True, True, False, True], [True, False, False, False], [False] * 4])


def loss_of(log_ratio, advantage, surrogate=None, mask=MASK):
    """Returns the sum over sequences of the mean loss of their tokens."""
    surrogate = surrogate or GeometricMean(low=0.4, high=0.3)
    return sequence_mean(surrogate(log_ratio, log_ratio, advantage, mask=mask)[0], mask).total


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=5), st.floats(-3, 3, width=32))
def test_a_sequence_equals_the_oracle(log_ratios, advantage):
    row = jnp.array([log_ratios], jnp.float32)
    got = loss_of(row, jnp.full(row.shape, advantage), mask=np.ones(row.shape, bool))
    expected = oracle.geometric_mean([math.exp(s) for s in log_ratios], advantage, low=0.4, high=0.3)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradient_below_at_and_above_both_bounds(sign):
    """L = -rho A with rho = exp((1/|o|) sum s'), so dL/ds_u = -rho A / |o| where s'_u = s_u, and 0 where it is held.

    A > 0 holds what is above log 1 + high = 0.3, A < 0 what is below -0.4; at the bound itself the token is live.
    """
    log_ratio = np.array([[-2.0, -0.4, 0.1, 0.3, 2.0]], np.float32)
    advantage = 1.5 * sign
    live = log_ratio <= np.float32(0.3) if sign > 0 else log_ratio >= np.float32(-0.4)
    held = np.where(live, log_ratio, 0.3 if sign > 0 else -0.4)
    rho = math.exp(held.mean())
    mask = np.ones(log_ratio.shape, bool)
    got = jax.grad(lambda s: loss_of(s, jnp.full(s.shape, advantage), mask=mask))(jnp.asarray(log_ratio))
    np.testing.assert_allclose(got[live], -rho * advantage / 5, rtol=1e-5)
    np.testing.assert_array_equal(got[~live], 0.0)
    assert 0 < live.sum() < 5
    _, clipped = GeometricMean(low=0.4, high=0.3)(log_ratio, log_ratio, jnp.full((1, 5), advantage), mask=mask)
    np.testing.assert_array_equal(clipped, ~live)


def test_gradient_is_numerical_in_float64(float64):
    log_ratio = jnp.array([[0.1, -0.2, 7.0, 0.9], [-1.0, 0.0, 0.0, 0.0], [0.0] * 4])
    advantage = jnp.array([[1.0] * 4, [-2.0] * 4, [1.0] * 4])
    check_grads(lambda s: loss_of(s, advantage), (log_ratio,), order=1, modes=["rev"])


def test_equal_ratios_within_the_bounds_are_their_own_mean():
    log_ratio = jnp.full((3, 4), 0.2)
    loss, clipped = GeometricMean()(log_ratio, log_ratio, jnp.ones((3, 4)), mask=MASK)
    np.testing.assert_allclose(loss[MASK], -math.exp(0.2), rtol=1e-6)
    assert not clipped.any()


@pytest.mark.parametrize("filler", [np.nan, np.inf, -np.inf])
def test_padding_reaches_neither_value_nor_gradient(filler):
    rng = np.random.default_rng(0)
    log_ratio = rng.normal(size=MASK.shape).astype(np.float32)
    advantage = jnp.where(MASK, 1.0, 0.0)
    run = jax.value_and_grad(loss_of)
    chex.assert_trees_all_equal(
        run(jnp.where(MASK, log_ratio, filler), advantage), run(jnp.where(MASK, log_ratio, 0.0), advantage)
    )


def test_no_scored_token_and_no_advantage_are_exactly_0():
    log_ratio = jnp.full((1, 2), 400.0)
    mask = np.ones((1, 2), bool)
    for advantage, scored in ((jnp.zeros((1, 2)), mask), (jnp.ones((1, 2)), ~mask)):
        value, slope = jax.value_and_grad(loss_of)(log_ratio, advantage, mask=scored)
        assert value == 0
        np.testing.assert_array_equal(slope, 0.0)


def test_a_token_without_an_advantage_has_no_loss_where_the_mean_overflows():
    """A < 0 leaves a large ratio unbounded; the token beside it has A = 0, and infinity times 0 is not its loss."""
    log_ratio, advantage, mask = jnp.full((1, 2), 400.0), jnp.array([[-1.0, 0.0]]), np.ones((1, 2), bool)
    loss, clipped = GeometricMean()(log_ratio, log_ratio, advantage, mask=mask)
    np.testing.assert_array_equal(loss, [[math.inf, 0.0]])
    assert not clipped.any()


class JitEqualsEager(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_loss(self):
        log_ratio = np.array([[0.2, 1.0]], np.float32)
        mask = np.ones((1, 2), bool)
        loss, clipped = self.variant(GeometricMean())(log_ratio, log_ratio, np.ones((1, 2), np.float32), mask=mask)
        chex.assert_trees_all_close(loss, np.full((1, 2), -math.exp(0.3), np.float32), rtol=1e-6)
        np.testing.assert_array_equal(clipped, [[False, True]])


def test_bad_parameters_and_inputs_are_refused():
    for name in ("low", "high"):
        with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0"):
            GeometricMean(**{name: -0.1})
    zeros = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), but log_ratio has shape \(2, 3\)"):
        GeometricMean()(zeros, zeros, zeros, mask=jnp.ones(3, bool))
    assert GeometricMean() == GeometricMean(low=0.4, high=0.4)
    assert repr(GeometricMean()) == "GeometricMean(low=0.4, high=0.4)"

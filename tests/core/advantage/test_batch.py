import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.core.advantage import BatchScaled, GroupNormalised, centred, zero_variance_rescaled
from grpo_jax.testing import oracle

batches = st.lists(st.integers(-4, 4), min_size=8, max_size=8).map(lambda r: np.array(r, np.float32).reshape(2, 4))
some = settings(max_examples=40, deadline=None)


def everyone(reward):
    return np.ones(np.shape(reward), bool)


def random_batch(rng):
    valid = rng.random((6, 5)) < 0.6
    valid[0] = False
    reward = np.where(valid, rng.integers(0, 3, (6, 5)) * rng.choice([0.1, 1.0, 30.0]), np.nan).astype(np.float32)
    return reward, valid


@pytest.mark.parametrize("ddof", [0, 1, 3])
def test_scaled_ones_equal_the_oracle(rng, ddof):
    for _ in range(4):
        reward, valid = random_batch(rng)
        expected = oracle.batch_scaled(reward, valid, ddof=ddof, eps=1e-3)
        np.testing.assert_allclose(BatchScaled(ddof=ddof, eps=1e-3)(reward, valid), expected, rtol=1e-5, atol=1e-6)


def test_gpg_equals_the_oracle(rng):
    for _ in range(8):
        reward, valid = random_batch(rng)
        np.testing.assert_allclose(
            zero_variance_rescaled(reward, valid), oracle.zero_variance_rescaled(reward, valid), rtol=1e-5, atol=1e-6
        )


def test_a_batch_of_one_group_is_that_group(rng):
    reward = rng.normal(size=(1, 6)).astype(np.float32)
    for ddof in (0, 1):
        scaled, group = BatchScaled(ddof=ddof), GroupNormalised(ddof=ddof)
        np.testing.assert_allclose(scaled(reward, everyone(reward)), group(reward, everyone(reward)), rtol=1e-6)
    np.testing.assert_array_equal(zero_variance_rescaled(reward, everyone(reward)), centred(reward, everyone(reward)))


def test_the_deviation_is_that_of_the_rewards_not_of_their_distances():
    """Rewards 0, 2, 10, 12 have deviation sqrt(26), their distances from the group means 1."""
    reward = jnp.array([[0.0, 2.0], [10.0, 12.0]])
    actual = BatchScaled(ddof=0, eps=0.0)(reward, everyone(reward))
    np.testing.assert_allclose(actual, np.array([[-1, 1], [-1, 1]]) / np.sqrt(26), rtol=1e-6)


def test_alpha_counts_groups_that_hold_something():
    """One group of four differs; of the others one is empty, so alpha is 3; without any that differs all is 0."""
    reward = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.1, 5.0], [1.0, 0.0]])
    valid = jnp.array([[True, True], [True, True], [True, False], [False, False]])
    np.testing.assert_array_equal(zero_variance_rescaled(reward, valid), [[1.5, -1.5], [0, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(zero_variance_rescaled(reward[1:], valid[1:]), 0.0)


@some
@given(batches)
def test_alpha_makes_the_mean_over_the_batch_one_over_the_groups_that_differ(reward):
    differ = reward.max(-1) > reward.min(-1)
    size = np.abs(np.asarray(zero_variance_rescaled(reward, everyone(reward)))).sum() / len(reward)
    expected = np.abs(reward - reward.mean(-1, keepdims=True))[differ].sum() / max(differ.sum(), 1)
    np.testing.assert_allclose(size, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])
@pytest.mark.parametrize("component", [BatchScaled(eps=0.0), zero_variance_rescaled])
def test_no_spread_is_exactly_0(component, value):
    reward = jnp.full((3, 7), value, jnp.float32)
    np.testing.assert_array_equal(component(reward, everyone(reward)), 0.0)
    some_differ = reward.at[0, 0].add(1.0)
    np.testing.assert_array_equal(component(some_differ, everyone(reward))[1:], 0.0)


@some
@given(batches, st.sampled_from([0.25, 2.0, 16.0]), st.integers(-8, 8))
def test_scale_and_offset(reward, scale, offset):
    """One offset and scale for the whole batch: a deviation takes both out, alpha only the offset."""
    moved = scale * reward + offset
    scaled = BatchScaled(eps=0.0)
    expected = scaled(reward, everyone(reward))
    np.testing.assert_allclose(scaled(moved, everyone(reward)), expected, rtol=1e-5, atol=1e-5)
    expected = scale * zero_variance_rescaled(reward, everyone(reward))
    np.testing.assert_allclose(zero_variance_rescaled(moved, everyone(reward)), expected, rtol=1e-5, atol=1e-5)
    for component in (scaled, zero_variance_rescaled):
        np.testing.assert_allclose(component(reward, everyone(reward)).sum(-1), 0.0, atol=1e-5)


def test_gradients_by_hand():
    """zero_variance_rescaled is alpha times a centring: alpha ([g = h] - 1/G), alpha = 3/2.

    With c the distances from the group mean, s the deviation (ddof 0) and d the distances from the batch mean,
    ds/dr_j = d_j/(n s), so dA_i/dr_j = (C_ij - c_i d_j/(n s^2)) / s with C the centring within groups.
    """
    reward = np.array([[1.0, 3.0], [0.0, 0.5], [2.0, 2.0]])
    centring = np.kron(np.diag([1.0, 1.0, 1.0]), np.eye(2) - 0.5)
    live = np.kron(np.diag([1.0, 1.0, 0.0]), np.eye(2) - 0.5)
    flat = jnp.asarray(reward.ravel(), jnp.float32)
    actual = jax.jit(jax.jacobian(lambda r: zero_variance_rescaled(r.reshape(3, 2), everyone(reward)).ravel()))(flat)
    np.testing.assert_allclose(actual, 1.5 * live, atol=1e-6)
    c, d, s = centring @ reward.ravel(), reward.ravel() - reward.mean(), reward.std()
    scaled = BatchScaled(ddof=0, eps=0.0)
    actual = jax.jit(jax.jacobian(lambda r: scaled(r.reshape(3, 2), everyone(reward)).ravel()))(flat)
    np.testing.assert_allclose(actual, (live - np.outer(c, d) / (6 * s**2)) / s, rtol=1e-5, atol=1e-6)


def test_values_and_bad_parameters():
    assert BatchScaled(eps=1e-4) == BatchScaled(ddof=1, eps=1e-4)
    assert hash(BatchScaled(ddof=0)) == hash(BatchScaled(ddof=0))
    assert repr(BatchScaled()) == "BatchScaled(ddof=1, eps=1e-06)"
    with pytest.raises(ValueError, match="ddof must be a finite number >= 0, got -1"):
        BatchScaled(ddof=-1)
    with pytest.raises(ValueError, match=r"eps must be a finite number >= 0.0, got nan"):
        BatchScaled(eps=float("nan"))

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.core.advantage import centred, greedy_baseline, length_weighted
from grpo_jax.testing import oracle

groups = st.lists(st.integers(-4, 4), min_size=5, max_size=5).map(lambda r: np.array(r, np.float32))
some = settings(max_examples=40, deadline=None)


def everyone(reward):
    return np.ones(np.shape(reward), bool)


def lengths(*counts):
    """Returns a mask [G, T] with that many scored tokens in each row, spread as one finds them."""
    return np.stack([np.random.default_rng(c).permutation(np.arange(9) < c) for c in counts])


def test_values_equal_the_oracle(rng):
    valid = rng.random((7, 5)) < 0.7
    reward = np.where(valid, rng.normal(size=(7, 5)) * 5, np.nan).astype(np.float32)
    mask = rng.random((7, 5, 9)) < rng.random((7, 5, 1))
    mask[0, :3] = False
    greedy = np.where(rng.random(7) < 0.7, rng.normal(size=7), np.nan).astype(np.float32)
    actual = length_weighted(reward, valid, mask=mask)
    expected = [oracle.length_weighted(r, m, v) for r, v, m in zip(reward, valid, mask, strict=True)]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    actual = greedy_baseline(reward, valid, greedy_reward=greedy)
    expected = [oracle.greedy_baseline(r, b, v) for r, v, b in zip(reward, valid, greedy, strict=True)]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("nothing", [np.nan, np.inf, -np.inf])
def test_without_a_greedy_reward_a_group_is_0(nothing):
    reward = jnp.array([[1.0, 2.0], [1.0, 2.0]])
    actual = greedy_baseline(reward, everyone(reward), greedy_reward=jnp.array([nothing, 0.5]))
    np.testing.assert_array_equal(actual, [[0, 0], [0.5, 1.5]])
    slope = jax.jit(jax.grad(lambda g: greedy_baseline(reward, everyone(reward), greedy_reward=g).sum()))
    np.testing.assert_array_equal(slope(jnp.array([nothing, 0.5])), [0.0, -2.0])


def test_one_offset_for_all_cancels_against_the_greedy_reward(rng):
    reward, greedy = jnp.asarray(rng.integers(0, 9, (3, 4)), jnp.float32), jnp.array([1.0, 2.0, 3.0])
    plain = greedy_baseline(reward, everyone(reward), greedy_reward=greedy)
    moved = greedy_baseline(2 * reward + 5, everyone(reward), greedy_reward=2 * greedy + 5)
    np.testing.assert_array_equal(moved, 2 * plain)
    np.testing.assert_array_equal(
        jax.jit(jax.grad(lambda r: greedy_baseline(r, everyone(r), greedy_reward=greedy).sum()))(reward), 1
    )


def test_equal_lengths_are_centring(rng):
    reward = rng.normal(size=(2, 5)).astype(np.float32)
    actual = length_weighted(reward, everyone(reward), mask=np.stack([lengths(*[3] * 5), lengths(*[1] * 5)]))
    np.testing.assert_allclose(actual, centred(reward, everyone(reward)), rtol=1e-5, atol=1e-6)


@some
@given(groups, st.lists(st.integers(1, 9), min_size=5, max_size=5), st.sampled_from([0.5, 4.0]), st.integers(-8, 8))
def test_laws_of_the_weighted_mean(reward, counts, scale, offset):
    """sum l A = 0; an offset cancels and a scale remains; the baseline lies between the rewards."""
    mask = lengths(*counts)
    actual = np.asarray(length_weighted(reward, everyone(reward), mask=mask))
    np.testing.assert_allclose(np.sum(actual * counts), 0.0, atol=1e-4)
    moved = length_weighted(scale * reward + offset, everyone(reward), mask=mask)
    np.testing.assert_allclose(moved, scale * actual, rtol=1e-5, atol=1e-5)
    assert np.all((reward - actual >= reward.min() - 1e-5) & (reward - actual <= reward.max() + 1e-5))


def test_a_large_offset_does_not_cost_digits():
    """Weighted sums of 1e4 + r would keep three digits of the differences."""
    reward = np.array([1e4, 1e4 + 1, 1e4 + 2, 1e4], np.float32)
    mask = lengths(9, 1, 2, 5)
    actual = length_weighted(reward, everyone(reward), mask=mask)
    np.testing.assert_allclose(actual, oracle.length_weighted(reward, mask), rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])
def test_a_group_with_one_distinct_reward_is_exactly_0(value):
    reward = jnp.full((7,), value, jnp.float32)
    np.testing.assert_array_equal(length_weighted(reward, everyone(reward), mask=lengths(1, 2, 3, 4, 5, 6, 7)), 0.0)


def test_completions_without_scored_tokens_do_not_count():
    reward = jnp.array([[1.0, 3.0, 100.0], [1.0, 3.0, 100.0], [1.0, 2.0, 3.0]])
    mask = np.stack([lengths(3, 1, 0), lengths(3, 0, 0), lengths(0, 0, 0)])
    actual = length_weighted(reward, everyone(reward), mask=mask)
    np.testing.assert_allclose(actual, [[-0.5, 1.5, 0], [0, 0, 0], [0, 0, 0]], atol=1e-6)


def test_gradient_by_hand():
    """dA_g/dr_h = [g = h] - l_h/sum(l), nothing for the fourth, which is not valid."""
    valid = np.array([True, True, True, False])
    mask = lengths(1, 3, 4, 5)
    reward = jnp.array([1.0, 2.0, 4.0, jnp.nan])
    actual = jax.jit(jax.jacobian(lambda r: length_weighted(r, valid, mask=mask)))(reward)
    expected = np.zeros((4, 4))
    expected[:3, :3] = np.eye(3) - np.array([1, 3, 4]) / 8
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    np.testing.assert_array_equal(actual[3], 0.0)
    np.testing.assert_array_equal(actual[:, 3], 0.0)


def test_bad_inputs_are_refused():
    reward = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"greedy_reward has shape \(3,\), but reward has shape \(2, 3\)"):
        greedy_baseline(reward, everyone(reward), greedy_reward=jnp.zeros(3))
    with pytest.raises(TypeError, match="greedy_reward must hold floating-point numbers, got dtype int32"):
        greedy_baseline(reward, everyone(reward), greedy_reward=jnp.zeros(2, int))
    with pytest.raises(TypeError, match="mask must be boolean"):
        length_weighted(reward, everyone(reward), mask=jnp.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match=r"mask has shape \(3, 2, 4\), but reward has shape \(2, 3\)"):
        length_weighted(reward, everyone(reward), mask=jnp.zeros((3, 2, 4), bool))
    with pytest.raises(ValueError, match=r"mask needs the trailing axes \[\.\.\., G, T\], got shape \(3,\)"):
        length_weighted(reward[0], everyone(reward[0]), mask=jnp.zeros(3, bool))

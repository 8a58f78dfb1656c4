import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core.advantage import GroupNormalised, PassAtK
from grpo_jax.testing import oracle


def everyone(reward):
    return np.ones(np.shape(reward), bool)


def outcome(positive, negative):
    """Returns rewards of 1 and 0, the successes first."""
    return np.array([1.0] * positive + [0.0] * negative, np.float32)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_values_equal_the_oracle(rng, k):
    valid = rng.random((40, 8)) < 0.8
    reward = (rng.random((40, 8)) < rng.random((40, 1))).astype(np.float32)
    reward = np.where(valid, reward, rng.choice([np.nan, np.inf, 1.0], (40, 8))).astype(np.float32)
    actual = PassAtK(k=k)(reward, valid)
    expected = [oracle.pass_at_k(r, v, k=k) for r, v in zip(reward, valid, strict=True)]
    np.testing.assert_allclose(actual, expected, rtol=2e-6)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("positive", [1, 2, 4])
def test_it_is_the_mean_over_all_sets_that_a_completion_is_part_of(k, positive):
    """Each set of k scores 1 if it holds a success; normalise the scores of all sets, then average by member."""
    reward = outcome(positive, 7 - positive)
    sets = list(itertools.combinations(range(7), k))
    score = np.array([max(reward[i] for i in members) for members in sets])
    normal = (score - score.mean()) / score.std() if score.std() > 0 else 0 * score
    expected = [np.mean([n for n, members in zip(normal, sets, strict=True) if i in members]) for i in range(7)]
    np.testing.assert_allclose(PassAtK(k=k)(reward, everyone(reward)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "k"), [(300, 1), (300, 8), (300, 150), (256, 2), (256, 64), (64, 60)])
def test_large_groups_keep_their_digits(size, k):
    """To a few roundings of float32: the binomials are up to 1e89, and R = 1 - fail as it stands would cost digits."""
    advantage = jax.jit(PassAtK(k=k))
    for positive in (1, 2, 3, 5, 7, size // 3, size // 2, size - k, size - 1):
        reward = outcome(positive, size - positive)
        actual = np.asarray(advantage(reward, everyone(reward)))
        expected = oracle.pass_at_k(reward, k=k)
        np.testing.assert_allclose(actual[0], expected[0], rtol=5e-7, atol=1e-19)
        np.testing.assert_allclose(actual[-1], expected[-1], rtol=5e-7, atol=1e-19)


def test_k_of_1_is_the_normalised_outcome(rng):
    reward = (rng.random((20, 6)) < 0.5).astype(np.float32)
    expected = GroupNormalised(ddof=0, eps=0.0)(reward, everyone(reward))
    np.testing.assert_allclose(PassAtK(k=1)(reward, everyone(reward)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_the_sum_over_a_group_is_0(k):
    for positive in range(7):
        advantage = PassAtK(k=k)(outcome(positive, 6 - positive), np.ones(6, bool))
        np.testing.assert_allclose(np.sum(advantage), 0.0, atol=2e-6)


def test_where_every_set_scores_the_same_all_is_exactly_0():
    """Nothing is correct; all are; or fewer than k are wrong, so that every set holds a success."""
    for positive, k in [(0, 2), (5, 2), (4, 2), (3, 3), (1, 5)]:
        reward = outcome(positive, 5 - positive)
        np.testing.assert_array_equal(PassAtK(k=k)(reward, everyone(reward)), 0.0)


def test_fewer_valid_completions_than_k_are_0():
    valid = np.array([True, True, False, False])
    np.testing.assert_array_equal(PassAtK(k=3)(np.array([1, 0, 1, 0], np.float32), valid), 0.0)
    expected = [1.0, -1.0, 0.0, 0.0]
    np.testing.assert_allclose(PassAtK(k=1)(np.array([1, 0, 1, 0], np.float32), valid), expected, rtol=1e-6)


def test_only_the_side_of_the_threshold_matters():
    """A reward at the threshold is not correct, and the gradient is 0 wherever there is one."""
    reward = jnp.array([0.5, 0.51, -7.0, 0.2])
    advantage = PassAtK(k=2)
    expected = advantage(jnp.array([0.0, 1.0, 0.0, 0.0]), everyone(reward))
    np.testing.assert_array_equal(advantage(reward, everyone(reward)), expected)
    moved = PassAtK(k=2, threshold=4.0)(2 * reward + 3.0, everyone(reward))
    np.testing.assert_array_equal(moved, expected)
    slope = jax.jit(jax.grad(lambda r: jnp.sum(advantage(r, everyone(r)) * jnp.arange(4.0))))(reward)
    np.testing.assert_array_equal(slope, 0.0)


def test_larger_sets_care_more_about_rare_success():
    """With one success in eight, its share of the advantage grows with k until sets without it are rare."""
    worth = [float(PassAtK(k=k)(outcome(1, 7), np.ones(8, bool))[0]) for k in (1, 2, 4, 7)]
    np.testing.assert_allclose(worth, [math.sqrt(q / (1 - q)) for q in (7 / 8, 6 / 8, 4 / 8, 1 / 8)], rtol=1e-5)


def test_values_and_bad_parameters():
    assert PassAtK(k=4) == PassAtK(k=4, threshold=0.5)
    assert hash(PassAtK(k=4)) == hash(PassAtK(k=4))
    assert repr(PassAtK(k=2)) == "PassAtK(k=2, threshold=0.5)"
    with pytest.raises(ValueError, match="k must be a finite number >= 1, got 0"):
        PassAtK(k=0)
    with pytest.raises(ValueError, match=r"k must be a whole number, got 1.5"):
        PassAtK(k=1.5)
    with pytest.raises(ValueError, match="threshold must be a finite number, got nan"):
        PassAtK(k=1, threshold=float("nan"))
    with pytest.raises(ValueError, match=r"reward has shape \(2, 3\), a group of 3; this advantage compares"):
        PassAtK(k=4)(jnp.zeros((2, 3)), jnp.ones((2, 3), bool))

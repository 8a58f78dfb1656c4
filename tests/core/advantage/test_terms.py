import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core.advantage import GroupNormalised, TermNormalised
from grpo_jax.testing import oracle


def random_terms(rng, terms=3):
    """Returns rewards [4, 5, K] on scales far apart, NaN where a term or a completion does not count."""
    valid = rng.random((4, 5)) < 0.8
    term = rng.integers(0, 4, (4, 5, terms)) * 10.0 ** rng.integers(-2, 3, terms)
    term = np.where(rng.random(term.shape) < 0.8, term, np.nan)
    term[3, 4] = np.nan
    return np.where(valid[..., None], term, np.inf).astype(np.float32), valid


@functools.partial(jax.jit, static_argnums=0)
def advantage(component, term, weight, valid):
    """Returns the advantage of terms alone: the sum of rewards is finite everywhere."""
    return component(jnp.zeros(valid.shape), valid, term_reward=term, term_weight=weight)


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("ddof", [0, 1])
def test_values_equal_the_oracle(rng, ddof, batch):
    for _ in range(4):
        term, valid = random_terms(rng)
        weight = rng.normal(size=3).astype(np.float32)
        actual = advantage(TermNormalised(ddof=ddof, batch=batch), term, weight, valid)
        expected = oracle.term_advantage(term, weight, valid, ddof=ddof, batch=batch)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(actual)[~valid], 0.0)


def test_one_term_is_the_normalised_group(rng):
    reward = rng.normal(size=(3, 6)).astype(np.float32)
    valid = np.ones((3, 6), bool)
    group = GroupNormalised()(reward, valid)
    actual = advantage(TermNormalised(batch=False), reward[..., None], np.ones(1, np.float32), valid)
    np.testing.assert_allclose(actual, group, rtol=1e-6)
    # Over the batch the normalised groups have mean 0 and, with ddof 0, deviation 1: the last step changes nothing.
    exact = TermNormalised(ddof=0, eps=0.0)
    actual = advantage(exact, reward[..., None], np.ones(1, np.float32), valid)
    np.testing.assert_allclose(actual, GroupNormalised(ddof=0, eps=0.0)(reward, valid), rtol=1e-5, atol=1e-6)


def test_what_a_sum_of_rewards_confuses_is_told_apart():
    """The paper's motive: of two terms, succeeding at one or at both is one sum-normalised advantage, not here.

    Groups (0, 1) and (0, 2) of sums normalise alike; by term, the second has twice the advantage of the first.
    """
    term = np.array([[[0, 0], [1, 0]], [[0, 0], [1, 1]]], np.float32)
    valid = np.ones((2, 2), bool)
    summed = np.asarray(GroupNormalised()(term.sum(-1), valid))
    np.testing.assert_allclose(summed[0], summed[1], rtol=1e-5)
    actual = np.asarray(advantage(TermNormalised(eps=0.0), term, np.ones(2, np.float32), valid))
    np.testing.assert_allclose(actual[1], 2 * actual[0], rtol=1e-5)


def test_scale_and_offset_of_each_term_do_not_matter(rng):
    """Each term may be moved by its own affine map; with the last step, all weights may share a factor."""
    term = rng.integers(0, 5, (4, 6, 3)).astype(np.float32)
    valid, weight = np.ones((4, 6), bool), np.array([1.0, 0.5, 2.0], np.float32)
    for batch in (True, False):
        component = TermNormalised(eps=0.0, batch=batch)
        plain = advantage(component, term, weight, valid)
        moved = advantage(component, term * np.float32([0.25, 2, 8]) + np.float32([1, -2, 3]), weight, valid)
        np.testing.assert_allclose(moved, plain, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.sum(plain), 0.0, atol=1e-4)
    same = advantage(TermNormalised(eps=0.0), term, 3 * weight, valid)
    np.testing.assert_allclose(same, advantage(TermNormalised(eps=0.0), term, weight, valid), rtol=1e-4, atol=1e-5)
    negative = advantage(TermNormalised(), term, -weight, valid)
    np.testing.assert_allclose(negative, -advantage(TermNormalised(), term, weight, valid), rtol=1e-5)


def test_a_constant_term_adds_exactly_0(rng):
    term = np.stack([np.full((2, 7), 0.1), rng.normal(size=(2, 7))], -1).astype(np.float32)
    valid = np.ones((2, 7), bool)
    both = advantage(TermNormalised(), term, np.array([1e6, 1.0], np.float32), valid)
    one = advantage(TermNormalised(), term[..., 1:], np.ones(1, np.float32), valid)
    np.testing.assert_array_equal(both, one)
    np.testing.assert_array_equal(advantage(TermNormalised(), term[..., :1], np.ones(1, np.float32), valid), 0.0)


def test_a_completion_to_which_no_term_applies_takes_part_in_nothing():
    term = jnp.array([[[0.0], [1.0], [jnp.nan]], [[2.0], [5.0], [jnp.nan]]])
    valid = jnp.ones((2, 3), bool)
    actual = advantage(TermNormalised(ddof=0), term, jnp.ones(1), valid)
    expected = advantage(TermNormalised(ddof=0), term[:, :2], jnp.ones(1), valid[:, :2])
    np.testing.assert_array_equal(actual[:, :2], expected)
    np.testing.assert_array_equal(actual[:, 2], 0.0)


def test_gradient_by_hand():
    """Without the last step, a term's slope is its weight times that of a normalised group.

    With z = (r - m)/std and ddof 0: w_k ([g = h] - 1/n - z_g z_h/n) / std, and 0 for a term of one distinct number.
    """
    term = np.array([[1.0, 7.0], [2.0, 7.0], [4.0, 7.0]])
    weight = np.array([0.5, 3.0], np.float32)
    component = TermNormalised(ddof=0, eps=0.0, batch=False)
    slope = jax.jit(jax.jacobian(lambda r: advantage(component, r, weight, np.ones(3, bool))))(
        jnp.asarray(term, jnp.float32)
    )
    r = term[:, 0]
    z = (r - r.mean()) / r.std()
    expected = 0.5 * (np.eye(3) - 1 / 3 - np.outer(z, z) / 3) / r.std()
    np.testing.assert_allclose(slope[..., 0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(slope[..., 1], 0.0)


def test_values_and_bad_input():
    assert repr(TermNormalised()) == "TermNormalised(ddof=1, eps=1e-06, batch=True)"
    assert TermNormalised(eps=1e-4) == TermNormalised(eps=1e-4)
    assert hash(TermNormalised(ddof=0)) == hash(TermNormalised(ddof=0))
    with pytest.raises(ValueError, match="ddof must be a finite number >= 0, got -1"):
        TermNormalised(ddof=-1)
    with pytest.raises(ValueError, match="eps must be a finite number >= 0"):
        TermNormalised(eps=-1.0)
    valid, term = np.ones((2, 3), bool), jnp.zeros((2, 3, 4))
    with pytest.raises(ValueError, match=r"term_reward\[\.\.\., 0\] has shape \(2, 4\), but reward has shape \(2, 3\)"):
        advantage(TermNormalised(), jnp.zeros((2, 4, 3)), jnp.ones(3), valid)
    with pytest.raises(ValueError, match=r"term_weight has shape \(3,\), but one row of term_reward has shape \(4,\)"):
        advantage(TermNormalised(), term, jnp.ones(3), valid)
    with pytest.raises(TypeError, match="term_reward must hold floating-point numbers"):
        advantage(TermNormalised(), term.astype(int), jnp.ones(4), valid)
    with pytest.raises(ValueError, match=r"term_reward needs the trailing axes \[\.\.\., G, K\]"):
        advantage(TermNormalised(), jnp.zeros(3), jnp.ones(3), valid)

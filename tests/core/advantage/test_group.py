import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from grpo_jax.core import GroupNormalised, ProcessNormalised
from grpo_jax.testing import oracle

groups = st.lists(st.integers(-4, 4), min_size=6, max_size=6).map(lambda r: np.array(r, np.float32))
some = settings(max_examples=40, deadline=None)


def everyone(reward):
    return np.ones(np.shape(reward), bool)


def process(component, reward, end, valid, length):
    """Returns the advantage of steps alone: every completion counts, and every token is scored."""
    reward = jnp.asarray(reward, jnp.float32)
    each = jnp.zeros(reward.shape[:-1]), jnp.ones(reward.shape[:-1], bool)
    mask = jnp.ones((*reward.shape[:-1], length), bool)
    return component(*each, step_reward=reward, step_end=end, step_valid=valid, mask=mask)


def random_steps(rng, length):
    """Returns two prompts with 3 completions of up to 4 steps, garbage where there is no step."""
    valid = rng.random((2, 3, 4)) < 0.7
    reward = np.where(valid, rng.normal(size=valid.shape), np.nan).astype(np.float32)
    end = np.where(valid, rng.integers(0, length, valid.shape), 10**6)
    return reward, end, valid


def test_published_numbers():
    """verl divides by n - 1 and adds 1e-6; TRL adds 1e-4."""
    reward = jnp.array([1.0, 0.0, 0.0, 0.0])
    verl = GroupNormalised(ddof=1, eps=1e-6)(reward, everyone(reward))
    np.testing.assert_allclose(verl, [1.499997, -0.499999, -0.499999, -0.499999], atol=5e-7)
    trl = GroupNormalised(ddof=1, eps=1e-4)(reward, everyone(reward))
    np.testing.assert_allclose(trl, [1.49970, -0.49990, -0.49990, -0.49990], atol=5e-6)


@pytest.mark.parametrize("ddof", [0, 1])
def test_groups_equal_the_oracle(rng, ddof):
    valid = rng.random((5, 6)) < 0.7
    reward = np.where(valid, rng.normal(size=(5, 6)), rng.choice([np.nan, np.inf, 7.0], (5, 6))).astype(np.float32)
    actual = GroupNormalised(ddof=ddof)(reward, valid)
    expected = [oracle.group_advantage(r, v, ddof=ddof) for r, v in zip(reward, valid, strict=True)]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(actual)[~valid], 0.0)


def test_a_nan_among_valid_rewards_is_treated_as_not_valid():
    reward = jnp.array([1.0, jnp.nan, 0.0, jnp.inf])
    actual = GroupNormalised()(reward, everyone(reward))
    np.testing.assert_allclose(actual, oracle.group_advantage([1, 0, 0, 0], [1, 0, 1, 0]), atol=1e-6)
    np.testing.assert_array_equal(actual[jnp.array([1, 3])], 0.0)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e6 + 0.1])
def test_a_group_with_one_distinct_reward_is_exactly_0(value):
    """The mean of eight times 0.1 is not 0.1 in float32; divided by eps alone it would be an advantage."""
    reward = jnp.full((7,), value, jnp.float32)
    np.testing.assert_array_equal(GroupNormalised(eps=0.0)(reward, everyone(reward)), 0.0)


def test_a_lone_sample_and_an_empty_group_are_exactly_0():
    reward = jnp.array([[3.0, jnp.nan, 1.0], [1.0, 2.0, 3.0]])
    valid = jnp.array([[True, False, False], [False] * 3])
    np.testing.assert_array_equal(GroupNormalised()(reward, valid), 0.0)
    np.testing.assert_array_equal(GroupNormalised(ddof=0, eps=0.0)(reward, valid), 0.0)


@some
@given(groups)
def test_the_sum_over_a_group_is_0(reward):
    np.testing.assert_allclose(GroupNormalised()(reward, everyone(reward)).sum(), 0.0, atol=1e-5)


@some
@given(groups, st.sampled_from([0.25, 2.0, 16.0]), st.integers(-8, 8))
def test_scale_and_offset_of_the_reward_do_not_matter(reward, scale, offset):
    advantage = GroupNormalised(eps=0.0)
    moved = advantage(scale * reward + offset, everyone(reward))
    np.testing.assert_allclose(moved, advantage(reward, everyone(reward)), rtol=1e-5, atol=1e-6)


@some
@given(groups, st.randoms())
def test_the_order_of_a_group_does_not_matter(reward, random):
    order = np.array(random.sample(range(len(reward)), len(reward)))
    plain = GroupNormalised()(reward, everyone(reward))
    np.testing.assert_allclose(GroupNormalised()(reward[order], everyone(reward)), plain[order], rtol=1e-5, atol=1e-6)


def test_gradient_is_finite_whatever_the_padding_holds():
    def total(reward):
        return jnp.sum(GroupNormalised()(reward, valid) * jnp.arange(4.0))

    valid = jnp.array([True, True, True, False])
    expected = jax.grad(total)(jnp.array([1.0, 2.0, 4.0, 0.0]))
    np.testing.assert_array_equal(jax.grad(total)(jnp.array([1.0, 2.0, 4.0, jnp.nan])), expected)
    assert expected[3] == 0
    assert np.abs(expected[:3]).min() > 0


def test_gradient_is_numerical_in_float64(float64):
    reward = jnp.array([[1.0, 2.0, 4.0, 0.5], [0.3, -1.0, 2.0, 0.0]])
    check_grads(lambda r: GroupNormalised()(r, jnp.ones((2, 4), bool)), (reward,), order=1, modes=["rev"])


@pytest.mark.parametrize("ddof", [0, 1])
def test_processes_equal_the_oracle(rng, ddof):
    reward, end, valid = random_steps(rng, length=7)
    actual = process(ProcessNormalised(ddof=ddof), reward, end, valid, length=7)
    expected = [oracle.process_advantage(*p, length=7, ddof=ddof) for p in zip(reward, end, valid, strict=True)]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_token_sums_the_steps_that_end_at_or_after_it():
    """Step rewards (0, 2) and (2, 0) normalise to (-1, 1) and (1, -1); the last step of the second is not valid.

    Without it (0, 2, 2) remain: mean 4/3, deviation sqrt(8/9), so the steps are -sqrt 2 and +sqrt(1/2) twice.
    """
    reward, end = jnp.array([[0.0, 2.0], [2.0, 0.0]]), jnp.array([[0, 2], [1, 3]])
    actual = process(ProcessNormalised(ddof=0, eps=0.0), reward, end, jnp.ones((2, 2), bool), length=4)
    np.testing.assert_allclose(actual, [[0, 1, 1, 0], [0, 0, -1, -1]], atol=1e-6)
    valid = jnp.array([[True, True], [True, False]])
    low, high = -np.sqrt(2), np.sqrt(0.5)
    actual = process(ProcessNormalised(ddof=0, eps=0.0), reward, end, valid, length=4)
    np.testing.assert_allclose(actual, [[low + high, high, high, 0], [high, high, 0, 0]], atol=1e-6)


def test_one_step_at_the_end_is_outcome_supervision(rng):
    reward = rng.normal(size=(3, 5)).astype(np.float32)
    ends = np.full((3, 5, 1), 5)
    steps = process(ProcessNormalised(), reward[..., None], ends, everyone(ends), length=6)
    outcome = GroupNormalised()(reward, everyone(reward))
    np.testing.assert_allclose(steps, np.repeat(outcome[..., None], 6, -1), rtol=1e-6)


class JitEqualsEager(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(0, 1)
    def test_both(self, ddof):
        reward, end, valid = random_steps(np.random.default_rng(1), length=5)
        group = self.variant(GroupNormalised(ddof=ddof))(reward[0], valid[0])
        expected = [oracle.group_advantage(r, v, ddof=ddof) for r, v in zip(reward[0], valid[0], strict=True)]
        chex.assert_trees_all_close(group, np.array(expected, np.float32), rtol=1e-5, atol=1e-6)
        steps = self.variant(lambda *a: process(ProcessNormalised(ddof=ddof), *a, length=5))(
            reward[0], end[0], valid[0]
        )
        expected = oracle.process_advantage(reward[0], end[0], valid[0], length=5, ddof=ddof).astype(np.float32)
        chex.assert_trees_all_close(steps, expected, rtol=1e-5, atol=1e-6)


def test_values_hash_compare_and_print():
    assert GroupNormalised() == GroupNormalised(ddof=1, eps=1e-6)
    assert hash(ProcessNormalised(eps=1e-4)) == hash(ProcessNormalised(eps=1e-4))
    assert repr(GroupNormalised(ddof=0)) == "GroupNormalised(ddof=0, eps=1e-06)"


@pytest.mark.parametrize("component", [GroupNormalised, ProcessNormalised])
def test_bad_parameters_are_refused(component):
    with pytest.raises(ValueError, match="ddof must be a finite number >= 0, got -1"):
        component(ddof=-1)
    with pytest.raises(ValueError, match="eps must be a finite number >= 0"):
        component(eps=-1e-6)


def test_bad_inputs_are_refused():
    reward = jnp.zeros((2, 3))
    with pytest.raises(TypeError, match="valid must be boolean"):
        GroupNormalised()(reward, reward)
    with pytest.raises(ValueError, match=r"valid has shape \(3,\), but reward has shape \(2, 3\)"):
        GroupNormalised()(reward, jnp.ones(3, bool))
    with pytest.raises(ValueError, match=r"reward needs the trailing axes \[\.\.\., G\]"):
        GroupNormalised()(jnp.array(1.0), jnp.array(True))
    with pytest.raises(TypeError, match="step_end must hold integers"):
        process(ProcessNormalised(), reward, reward, everyone(reward), length=2)
    with pytest.raises(ValueError, match=r"step_end has shape \(2, 1\), but step_reward has shape \(2, 3\)"):
        process(ProcessNormalised(), reward, jnp.zeros((2, 1), int), everyone(reward), length=2)
    with pytest.raises(TypeError, match="step_valid must be boolean"):
        process(ProcessNormalised(), reward, jnp.zeros((2, 3), int), reward, length=2)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from grpo_jax.core.advantage import GroupNormalised, ProcessNormalised, centred, leave_one_out, mean_scaled
from grpo_jax.testing import oracle

groups = st.lists(st.integers(-4, 4), min_size=6, max_size=6).map(lambda r: np.array(r, np.float32))
some = settings(max_examples=40, deadline=None)


def everyone(reward):
    return np.ones(np.shape(reward), bool)


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


@pytest.mark.parametrize("component", [centred, leave_one_out, mean_scaled])
def test_the_plain_ones_equal_the_oracle(rng, component):
    valid = rng.random((8, 6)) < 0.7
    reward = rng.normal(size=(8, 6)) * 10.0 ** rng.integers(-3, 4, (8, 1)) + 1.0
    reward = np.where(valid, reward, np.nan).astype(np.float32)
    reward[0, valid[0].argmax()] = np.inf
    actual = component(reward, valid)
    expected = np.array([getattr(oracle, component.__name__)(*pair) for pair in zip(reward, valid, strict=True)])
    size = np.maximum(np.abs(expected).max(-1, keepdims=True), 1e-3)
    np.testing.assert_allclose(actual / size, expected / size, rtol=1e-4, atol=2e-6)


def test_a_group_of_two_to_one_by_hand():
    """Rewards 1, 1, 0, 0: mean 1/2. The others of a success have mean 1/3, those of a failure 2/3."""
    reward = jnp.array([1.0, 1.0, 0.0, 0.0])
    np.testing.assert_array_equal(centred(reward, everyone(reward)), [0.5, 0.5, -0.5, -0.5])
    np.testing.assert_allclose(leave_one_out(reward, everyone(reward)), [2 / 3, 2 / 3, -2 / 3, -2 / 3], rtol=1e-6)
    np.testing.assert_array_equal(mean_scaled(reward, everyone(reward)), [1, 1, -1, -1])


@some
@given(groups)
def test_leaving_one_out_is_centring_times_n_by_n_minus_1(reward):
    n = len(reward)
    actual = leave_one_out(reward, everyone(reward))
    np.testing.assert_allclose(actual, n / (n - 1) * centred(reward, everyone(reward)), rtol=1e-5, atol=1e-6)


@some
@given(groups, st.sampled_from([0.25, 2.0, 16.0]), st.integers(-8, 8))
def test_what_scale_and_offset_do_to_the_plain_ones(reward, scale, offset):
    """Offsets cancel in the differences, and the scale remains; a share of the mean keeps no scale."""
    for component in (centred, leave_one_out):
        moved = component(scale * reward + offset, everyone(reward))
        np.testing.assert_allclose(moved, scale * component(reward, everyone(reward)), rtol=1e-5, atol=1e-5)
    plain = mean_scaled(reward, everyone(reward))
    np.testing.assert_allclose(mean_scaled(scale * reward, everyone(reward)), plain, rtol=1e-5, atol=1e-5)


@some
@given(groups)
def test_the_plain_ones_sum_to_0(reward):
    for component in (centred, leave_one_out, mean_scaled):
        np.testing.assert_allclose(component(reward, everyone(reward)).sum(), 0.0, atol=2e-4)


def test_the_share_of_a_mean_is_0_unless_the_mean_is_positive():
    reward = jnp.array([[0.0, 0.0, 0.0], [1.0, -1.0, 0.0], [-3.0, -1.0, 1.0], [-1.0, 1.0, 3.0]])
    np.testing.assert_allclose(
        mean_scaled(reward, everyone(reward)), [[0] * 3, [0] * 3, [0] * 3, [-2, 0, 2]], rtol=1e-6
    )
    slope = jax.jit(jax.grad(lambda r: jnp.sum(mean_scaled(r, everyone(r))[:, 0])))(reward)
    np.testing.assert_array_equal(slope[:3], 0.0)


def test_a_success_weighs_as_much_as_all_failures_of_its_group():
    """N of G succeed: a success has G/N - 1 and a failure -1, so 1/G sum_g A_g s_g = mean(s of successes) - mean(s)."""
    reward = jnp.array([1.0, 0.0, 0.0, 1.0, 0.0])
    score = np.array([0.3, -1.0, 2.0, 0.7, 0.1])
    actual = np.mean(np.asarray(mean_scaled(reward, everyone(reward))) * score)
    np.testing.assert_allclose(actual, score[[0, 3]].mean() - score.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("component", "slope"),
    [
        (centred, lambda r: np.eye(4) - 1 / 4),
        (leave_one_out, lambda r: np.eye(4) * 4 / 3 - 1 / 3),
        (mean_scaled, lambda r: np.eye(4) / r.mean() - r[:, None] / (4 * r.mean() ** 2)),
    ],
)
def test_gradient_of_the_plain_ones(component, slope):
    """With m = mean(r), dm/dr_h = 1/n:

    r_g - m                      [g = h] - 1/n
    n/(n - 1) (r_g - m)          [g = h] n/(n - 1) - 1/(n - 1)
    r_g/m - 1                    [g = h]/m - r_g/(n m^2)

    An entry that is not valid, the fifth here, is in no row and no column.
    """
    reward = np.array([1.0, 2.0, 4.0, 0.5])
    valid = np.array([True] * 4 + [False])
    actual = jax.jit(jax.jacobian(lambda r: component(r, valid)))(jnp.array([*reward, np.nan], jnp.float32))
    np.testing.assert_allclose(actual[:4, :4], slope(reward), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(actual[4], 0.0)
    np.testing.assert_array_equal(actual[:, 4], 0.0)


def test_gradient_of_the_normalised():
    """With z = (r - m)/std and ddof 0: dstd/dr_h = z_h/n, so dA_g/dr_h = ([g = h] - 1/n - z_g z_h/n)/std."""
    reward = np.array([1.0, 2.0, 4.0, 0.5])
    z = (reward - reward.mean()) / reward.std()
    expected = (np.eye(4) - 1 / 4 - np.outer(z, z) / 4) / reward.std()
    advantage = GroupNormalised(ddof=0, eps=0.0)
    actual = jax.jit(jax.jacobian(lambda r: advantage(r, everyone(reward))))(jnp.asarray(reward, jnp.float32))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_group_without_a_deviation_is_exactly_0():
    """Two rewards have no deviation with ddof 2: dividing by eps alone would give a million."""
    reward = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(GroupNormalised(ddof=2)(reward, jnp.array([True, True, False])), 0.0)


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
    expected = jax.jit(jax.grad(total))(jnp.array([1.0, 2.0, 4.0, 0.0]))
    np.testing.assert_array_equal(jax.jit(jax.grad(total))(jnp.array([1.0, 2.0, 4.0, jnp.nan])), expected)
    assert expected[3] == 0
    assert np.abs(expected[:3]).min() > 0


def test_gradient_is_numerical_in_float64(float64):
    reward = jnp.array([[1.0, 2.0, 4.0, 0.5], [0.3, -1.0, 2.0, 0.0]])
    check_grads(lambda r: GroupNormalised()(r, jnp.ones((2, 4), bool)), (reward,), order=1, modes=["rev"])


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
    with pytest.raises(ValueError, match=r"reward has shape \(2, 1\), a group of 1; this advantage compares"):
        leave_one_out(reward[:, :1], everyone(reward[:, :1]))
    with pytest.raises(ValueError, match=r"reward needs the trailing axes \[\.\.\., G\]"):
        GroupNormalised()(jnp.array(1.0), jnp.array(True))

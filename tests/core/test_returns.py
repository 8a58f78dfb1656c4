import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from grpo_jax.core import returns
from grpo_jax.core.returns import all_equal, reward_with_kl
from grpo_jax.testing import oracle

gae, discounted_returns = jax.jit(returns.gae), jax.jit(returns.discounted_returns)
whiten = jax.jit(returns.whiten, static_argnames="centre")

some = settings(max_examples=40, deadline=None)


def random_rows(rng, garbage=np.nan):
    """Returns rewards, values and a mask with gaps [5, 8]; the last row is empty."""
    mask = rng.random((5, 8)) < 0.7
    mask[-1] = False
    reward, value = (np.where(mask, rng.normal(size=mask.shape), garbage).astype(np.float32) for _ in range(2))
    return reward, value, mask


def test_the_penalised_reward_equals_the_oracle(rng):
    mask = np.array([[True, True, True, False], [False, True, False, True], [True] * 4, [False] * 4])
    kl = np.where(mask, rng.normal(size=mask.shape), np.nan).astype(np.float32)
    reward = rng.normal(size=4).astype(np.float32)
    actual = reward_with_kl(reward, kl, mask, coef=0.3)
    np.testing.assert_allclose(actual, oracle.reward_with_kl(reward, kl, mask, coef=0.3), rtol=1e-6)
    np.testing.assert_array_equal(actual[3], 0.0)


def test_the_score_lands_on_the_last_scored_token():
    mask = jnp.array([[True, False, True, False]])
    actual = reward_with_kl(jnp.array([2.0]), jnp.full((1, 4), jnp.nan), mask.at[0, 0].set(False), coef=0.0)
    assert np.isnan(actual[0, 2])
    actual = reward_with_kl(jnp.array([2.0]), jnp.array([[0.5, jnp.nan, 0.25, jnp.inf]]), mask, coef=2.0)
    np.testing.assert_array_equal(actual, [[-1.0, 0.0, 1.5, 0.0]])


def test_a_reward_of_an_empty_row_may_be_anything():
    actual = reward_with_kl(jnp.array([jnp.nan]), jnp.zeros((1, 2)), jnp.zeros((1, 2), bool), coef=0.1)
    np.testing.assert_array_equal(actual, 0.0)


def test_gradient_of_the_penalised_reward():
    """dR_t/dkl_t = -coef on scored tokens, dR_t/dreward = 1 on the last one."""
    mask = jnp.array([True, False, True, False])
    kl = jnp.array([0.5, jnp.nan, 0.25, jnp.inf])
    slopes = jax.jit(jax.jacobian(lambda r, k: reward_with_kl(r, k, mask, coef=0.5), (0, 1)))(jnp.array(2.0), kl)
    np.testing.assert_array_equal(slopes[0], [0, 0, 1, 0])
    np.testing.assert_array_equal(slopes[1], np.diag([-0.5, 0, -0.5, 0]))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_estimates_equal_the_oracle(rng, gamma, lam):
    rows = random_rows(rng)
    advantage, returns = gae(*rows, gamma=gamma, lam=lam)
    expected, expected_returns = oracle.gae(*rows, gamma=gamma, lam=lam)
    np.testing.assert_allclose(advantage, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(returns, expected_returns, rtol=1e-5, atol=1e-6)
    to_go = oracle.discounted_returns(rows[0], rows[2], gamma=gamma)
    np.testing.assert_allclose(discounted_returns(rows[0], rows[2], gamma=gamma), to_go, rtol=1e-5, atol=1e-6)


def test_three_tokens_by_hand():
    """gamma = 1/2, lam = 1/2: deltas 0 + 3/2 - 1 = 1/2, 1 + 1 - 3 = -1, 4 - 2 = 2; A = 2, -1 + 2/4, 1/2 - 1/8."""
    advantage, returns = gae(
        jnp.array([0.0, 1.0, 4.0]), jnp.array([1.0, 3.0, 2.0]), jnp.ones(3, bool), gamma=0.5, lam=0.5
    )
    np.testing.assert_array_equal(advantage, [0.375, -0.5, 2.0])
    np.testing.assert_array_equal(returns, [1.375, 2.5, 4.0])


def test_lambda_1_is_the_return_minus_the_value_and_0_the_one_step_error(rng):
    reward, value, mask = random_rows(rng)
    to_go = discounted_returns(reward, mask, gamma=0.9)
    advantage, returns = gae(reward, value, mask, gamma=0.9, lam=1.0)
    np.testing.assert_allclose(returns, to_go, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(advantage, np.where(mask, to_go - value, 0.0), rtol=1e-5, atol=1e-6)
    full = np.ones_like(mask)
    reward, value = rng.normal(size=(2, *mask.shape)).astype(np.float32)
    later = np.concatenate([value[:, 1:], np.zeros((5, 1))], axis=1)
    advantage, _ = gae(reward, value, full, gamma=0.9, lam=0.0)
    np.testing.assert_allclose(advantage, reward + 0.9 * later - value, rtol=1e-5, atol=1e-6)


def test_a_perfect_critic_leaves_nothing(rng):
    reward = rng.integers(-4, 4, (3, 6)).astype(np.float32)
    mask = np.ones((3, 6), bool)
    value = discounted_returns(reward, mask, gamma=0.5)
    for lam in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(gae(reward, value, mask, gamma=0.5, lam=lam)[0], 0.0, atol=1e-6)


def test_tokens_that_do_not_count_can_be_taken_out_of_a_row(rng):
    """A gap passes the next value and the running sum on unchanged, and no discount is taken for it."""
    reward, value, mask = random_rows(rng, garbage=np.inf)
    for row in range(4):
        short = [x[row][mask[row]] for x in (reward, value, mask)]
        for actual, expected in zip(
            gae(reward[row], value[row], mask[row], gamma=0.8, lam=0.7), gae(*short, gamma=0.8, lam=0.7), strict=True
        ):
            np.testing.assert_allclose(actual[mask[row]], expected, rtol=1e-6)
            np.testing.assert_array_equal(actual[~mask[row]], 0.0)


def test_a_row_without_scored_tokens_and_an_empty_axis_are_0():
    for shape in ((2, 3), (2, 0)):
        nothing = jnp.full(shape, jnp.nan)
        for result in gae(nothing, nothing, jnp.zeros(shape, bool), gamma=0.9, lam=0.9):
            np.testing.assert_array_equal(result, np.zeros(shape))


def test_gradient_of_the_estimates():
    """A_t = sum_n (g l)^n delta_t+n over scored tokens 0, 2, 3 of four; delta_t = r_t + g V_t' - V_t.

    dA_t/dr_s = (g l)^n for s n scored tokens later. V_t itself enters with -1, and V_s later with
    (g l)^(n-1) g - (g l)^n = (g l)^(n-1) g (1 - l). What is not scored, the second token, has no part.
    """
    gamma, lam = 0.8, 0.5
    mask = jnp.array([True, False, True, True])
    reward, value = jnp.array([1.0, jnp.nan, 2.0, -1.0]), jnp.array([0.5, jnp.inf, 1.0, 3.0])
    slopes = jax.jit(jax.jacobian(lambda r, v: gae(r, v, mask, gamma=gamma, lam=lam)[0], (0, 1)))(reward, value)
    gl, step = gamma * lam, gamma * (1 - lam)
    on_reward = [[1, 0, gl, gl**2], [0] * 4, [0, 0, 1, gl], [0, 0, 0, 1]]
    on_value = [[-1, 0, step, gl * step], [0] * 4, [0, 0, -1, step], [0, 0, 0, -1]]
    np.testing.assert_allclose(slopes[0], on_reward, rtol=1e-6)
    np.testing.assert_allclose(slopes[1], on_value, rtol=1e-5)
    np.testing.assert_array_equal(slopes[0][:, 1], 0.0)
    np.testing.assert_array_equal(slopes[1][:, 1], 0.0)


def test_gradients_are_numerical_in_float64(float64, rng):
    mask = np.arange(6) < np.array([[6], [4], [0]])
    reward, value = jnp.asarray(rng.normal(size=(2, 3, 6)))

    def all_of_them(reward, value):
        whitened = whiten(value, mask), whiten(reward, mask, centre=False, eps=0.1)
        return *gae(reward, value, mask, gamma=0.9, lam=0.8), *whitened

    check_grads(jax.jit(all_of_them), (reward, value), order=1, modes=["rev"])


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("eps", [0.0, 1e-8, 0.5])
def test_whitening_equals_the_oracle(rng, centre, eps):
    for scale, offset in [(1.0, 0.0), (1e-3, 0.0), (100.0, 1e3)]:
        x, _, mask = random_rows(rng)
        x = (scale * x + offset).astype(np.float32)
        expected = oracle.whiten(x, mask, eps=eps, centre=centre)
        np.testing.assert_allclose(whiten(x, mask, eps=eps, centre=centre), expected, rtol=1e-4, atol=1e-5)


@some
@given(st.lists(st.integers(-9, 9), min_size=6, max_size=6), st.sampled_from([0.5, 8.0]), st.integers(-8, 8))
def test_laws_of_whitening(numbers, scale, offset):
    x, mask = np.array(numbers, np.float32).reshape(2, 3), np.ones((2, 3), bool)
    plain = np.asarray(whiten(x, mask, eps=0.0))
    np.testing.assert_allclose(whiten(scale * x + offset, mask, eps=0.0), plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(plain.sum(), 0.0, atol=1e-5)
    np.testing.assert_allclose(plain.var(ddof=1), float(len(set(numbers)) > 1), rtol=1e-5)
    kept = whiten(x, mask, eps=0.0, centre=False)
    np.testing.assert_allclose(kept, plain + x.mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])
def test_a_constant_is_exactly_0(value):
    x = jnp.full((3, 7), value, jnp.float32).at[0, 0].set(jnp.nan)
    mask = jnp.ones((3, 7), bool).at[0, 0].set(False)
    np.testing.assert_array_equal(whiten(x, mask, eps=0.0), 0.0)
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: whiten(x, mask, eps=0.0)[1, 1]))(x), 0.0)
    np.testing.assert_allclose(whiten(x, mask, centre=False)[mask], np.float32(value), rtol=1e-6)


def test_one_entry_and_none_are_0():
    x = jnp.array([[3.0, jnp.nan]])
    np.testing.assert_array_equal(whiten(x, jnp.array([[True, False]])), 0.0)
    np.testing.assert_array_equal(whiten(x, jnp.zeros((1, 2), bool), centre=False), 0.0)


def test_nan_that_counts_is_not_a_constant():
    assert not all_equal(jnp.full(2, jnp.nan), jnp.ones(2, bool))
    assert np.isnan(whiten(jnp.array([jnp.nan, 1.0]), jnp.ones(2, bool))).all()


def test_padding_reaches_neither_value_nor_gradient(rng):
    def total(reward, value):
        advantage, returns = gae(reward, value, mask, gamma=0.9, lam=0.8)
        return jnp.sum(whiten(advantage, mask) * jnp.cos(returns))

    slopes = []
    for garbage in (np.nan, -np.inf, 0.0):
        reward, value, mask = random_rows(np.random.default_rng(3), garbage)
        slopes.append(jax.jit(jax.value_and_grad(total, (0, 1)))(reward, value))
    for dirty in slopes[:2]:
        chex.assert_trees_all_equal(dirty, slopes[2])
    for slope in slopes[0][1]:
        np.testing.assert_array_equal(np.asarray(slope)[~mask], 0.0)


class JitEqualsEager(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(0.0, 0.9)
    def test_all(self, gamma):
        reward, value, mask = random_rows(np.random.default_rng(4))
        advantage, _ = self.variant(lambda *rows: returns.gae(*rows, gamma=gamma, lam=0.9))(reward, value, mask)
        expected, _ = oracle.gae(reward, value, mask, gamma=gamma, lam=0.9)
        np.testing.assert_allclose(advantage, expected, rtol=1e-5, atol=1e-6)
        actual = self.variant(returns.whiten)(reward, mask)
        np.testing.assert_allclose(actual, oracle.whiten(reward, mask), rtol=1e-5, atol=1e-6)
        kl = self.variant(lambda *rows: reward_with_kl(*rows, coef=0.5))(reward[:, 0], value, mask)
        expected = oracle.reward_with_kl(reward[:, 0], value, mask, coef=0.5)
        np.testing.assert_allclose(kl, expected, rtol=1e-5, atol=1e-6)


def test_bad_inputs_are_refused():
    mask, tokens = jnp.ones((2, 3), bool), jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"reward has shape \(3,\), but kl has shape \(2, 3\)"):
        reward_with_kl(jnp.zeros(3), tokens, mask, coef=0.1)
    with pytest.raises(TypeError, match="mask must be boolean"):
        reward_with_kl(jnp.zeros(2), tokens, tokens, coef=0.1)
    with pytest.raises(ValueError, match=r"value has shape \(3,\), but token_reward has shape \(2, 3\)"):
        gae(tokens, tokens[0], mask, gamma=1.0, lam=1.0)
    with pytest.raises(TypeError, match="mask must be boolean"):
        gae(tokens, tokens, tokens, gamma=1.0, lam=1.0)
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), but token_reward has shape \(2, 3\)"):
        discounted_returns(tokens, mask[0], gamma=1.0)
    with pytest.raises(ValueError, match=r"token_reward needs the trailing axes \[\.\.\., T\]"):
        discounted_returns(jnp.array(1.0), jnp.array(True), gamma=1.0)
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), but x has shape \(2, 3\)"):
        whiten(tokens, mask[0])
    with pytest.raises(TypeError, match="mask must be boolean"):
        whiten(tokens, tokens)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core.advantage import Gae, GroupBaselineWhitened, ReinforcePlusPlus
from grpo_jax.testing import oracle


def random_tokens(rng):
    """Returns a batch [3, 4, 6] in which some completions are not valid, and NaN wherever nothing counts."""
    valid = rng.random((3, 4)) < 0.8
    mask = rng.random((3, 4, 6)) < 0.7
    mask[0, 0] = False
    counted = mask & valid[..., None]
    token_reward, value = (np.where(counted, rng.normal(size=mask.shape), np.nan).astype(np.float32) for _ in range(2))
    reward = np.where(valid, rng.normal(size=valid.shape), np.nan).astype(np.float32)
    return reward, valid, {"token_reward": token_reward, "value": value, "mask": mask}, counted


def rows(x):
    return np.asarray(x).reshape(-1, np.shape(x)[-1])


@functools.partial(jax.jit, static_argnums=0)
def run(component, reward, valid, **named):
    return component(reward, valid, **named)


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_returns_to_go_equal_the_oracle(rng, gamma):
    reward, valid, named, counted = random_tokens(rng)
    named.pop("value")
    actual = run(ReinforcePlusPlus(gamma=gamma, eps=1e-3), reward, valid, **named)
    to_go = oracle.discounted_returns(rows(named["token_reward"]), rows(counted), gamma=gamma)
    expected = oracle.whiten(to_go, rows(counted), eps=1e-3)
    np.testing.assert_allclose(rows(actual), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(actual)[~counted], 0.0)


@pytest.mark.parametrize(("gamma", "lam", "whiten"), [(0.9, 0.8, True), (1.0, 1.0, True), (0.9, 0.0, False)])
def test_estimates_equal_the_oracle(rng, gamma, lam, whiten):
    reward, valid, named, counted = random_tokens(rng)
    actual = run(Gae(gamma=gamma, lam=lam, whiten=whiten, eps=1e-3), reward, valid, **named)
    tokens = rows(named["token_reward"]), rows(named["value"]), rows(counted)
    expected, _ = oracle.gae(*tokens, gamma=gamma, lam=lam)
    expected = oracle.whiten(expected, rows(counted), eps=1e-3) if whiten else expected
    np.testing.assert_allclose(rows(actual), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(actual)[~counted], 0.0)


def test_the_whitened_baseline_equals_the_oracle(rng):
    reward, valid, named, counted = random_tokens(rng)
    actual = run(GroupBaselineWhitened(eps=1e-3), reward, valid, mask=named["mask"])
    apart = np.array([oracle.centred(*pair) for pair in zip(reward, valid, strict=True)])
    spread = np.repeat(apart.reshape(-1, 1), 6, axis=1)
    np.testing.assert_allclose(rows(actual), oracle.whiten(spread, rows(counted), eps=1e-3), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(actual)[~counted], 0.0)


def test_mean_0_and_variance_1_over_the_scored_tokens(rng):
    reward, valid, named, counted = random_tokens(rng)
    only_mask = {"mask": named["mask"]}
    no_value = only_mask | {"token_reward": named["token_reward"]}
    for component, asked in [(Gae(), named), (ReinforcePlusPlus(), no_value), (GroupBaselineWhitened(), only_mask)]:
        tokens = np.asarray(run(component, reward, valid, **asked), np.float64)[counted]
        np.testing.assert_allclose([tokens.mean(), tokens.var(ddof=1)], [0.0, 1.0], atol=1e-5)


def test_scale_and_offset():
    """The group baseline takes out an offset of each group, whitening one scale for all; a return keeps its offset."""
    reward = jnp.array([[1.0, 0.0, 2.0], [3.0, 3.0, 5.0]])
    valid, mask = jnp.ones((2, 3), bool), jnp.arange(4) < jnp.array([[1, 2, 3], [4, 2, 1]])[..., None]
    whitened = GroupBaselineWhitened(eps=0.0)
    plain = run(whitened, reward, valid, mask=mask)
    moved = run(whitened, 4 * reward + jnp.array([[7.0], [-3.0]]), valid, mask=mask)
    np.testing.assert_allclose(moved, plain, rtol=1e-5, atol=1e-6)
    plus = ReinforcePlusPlus(eps=0.0)
    last = jnp.where(mask & ~jnp.roll(mask, -1, -1).at[..., -1].set(False), reward[..., None], 0.0)
    plain = run(plus, reward, valid, token_reward=last, mask=mask)
    np.testing.assert_allclose(run(plus, reward, valid, token_reward=4 * last, mask=mask), plain, rtol=1e-5, atol=1e-6)


def test_a_score_at_the_end_is_the_whitened_score_of_every_token():
    """With gamma 1 every token of a completion has the same return: scores 1 and -1 over 3 + 1 tokens.

    Mean 1/2 and, by n - 1, variance (3/4 + 9/4)/3 = 1.
    """
    mask = jnp.array([[[True, True, True], [True, False, False]]])
    token_reward = jnp.array([[[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]]])
    reward, valid = jnp.array([[1.0, -1.0]]), jnp.ones((1, 2), bool)
    actual = run(ReinforcePlusPlus(), reward, valid, token_reward=token_reward, mask=mask)
    np.testing.assert_allclose(actual, [[[0.5, 0.5, 0.5], [-1.5, 0, 0]]], atol=1e-6)
    # The distances from the group's mean are the same scores here, and so is what whitening makes of them.
    np.testing.assert_allclose(run(GroupBaselineWhitened(), reward, valid, mask=mask), actual, atol=1e-6)


def test_statistics_run_over_tokens_not_completions():
    """Distances 1 and -1; the first has three tokens. Over completions the mean would be 0, over tokens it is 1/2."""
    mask = jnp.array([[[True, True, True], [True, False, False]]])
    actual = run(GroupBaselineWhitened(), jnp.array([[2.0, 0.0]]), jnp.ones((1, 2), bool), mask=mask)
    np.testing.assert_allclose(actual, [[[0.5, 0.5, 0.5], [-1.5, 0, 0]]], atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])
def test_a_batch_without_differences_is_exactly_0(value):
    reward, mask = jnp.full((2, 7), value, jnp.float32), jnp.ones((2, 7, 3), bool)
    valid = jnp.ones((2, 7), bool)
    np.testing.assert_array_equal(run(GroupBaselineWhitened(eps=0.0), reward, valid, mask=mask), 0.0)
    at_the_end = jnp.zeros(mask.shape).at[..., -1].set(value)
    np.testing.assert_array_equal(
        run(ReinforcePlusPlus(eps=0.0), reward, valid, token_reward=at_the_end, mask=mask), 0.0
    )
    perfect = {"token_reward": at_the_end, "value": jnp.full(mask.shape, value, jnp.float32)}
    np.testing.assert_array_equal(run(Gae(eps=0.0), reward, valid, **perfect, mask=mask), 0.0)


def test_one_bad_token_reward_takes_its_completion_out():
    mask = jnp.array([[[True, True], [True, False], [True, True]]])
    token_reward = jnp.array([[[0.0, jnp.nan], [1.0, jnp.nan], [0.0, 3.0]]])
    reward, valid = jnp.ones((1, 3)), jnp.ones((1, 3), bool)
    actual = run(ReinforcePlusPlus(), reward, valid, token_reward=token_reward, mask=mask)
    np.testing.assert_array_equal(actual[0, 0], 0.0)
    expected = run(ReinforcePlusPlus(), reward[:, 1:], valid[:, 1:], token_reward=token_reward[:, 1:], mask=mask[:, 1:])
    np.testing.assert_array_equal(actual[:, 1:], expected)


def test_a_critic_that_has_diverged_is_not_hidden():
    named = {"token_reward": jnp.zeros((1, 2, 2)), "mask": jnp.ones((1, 2, 2), bool)}
    value = jnp.zeros((1, 2, 2)).at[0, 0, 0].set(jnp.nan)
    for whiten in (True, False):
        actual = run(Gae(whiten=whiten), jnp.zeros((1, 2)), jnp.ones((1, 2), bool), value=value, **named)
        assert np.isnan(actual[0, 0, 0])


def test_gradient_by_hand():
    """Two tokens of one completion, two of another; x = (x1..x4) are the returns-to-go, z the whitened ones.

    dz_i/dx_j = ([i = j] - 1/4 - z_i z_j/3) / std with ddof 1, and dx/dr sums the rewards from each token on.
    """
    token_reward = np.array([[[1.0, 2.0], [0.5, -1.0]]])
    to_go = np.kron(np.eye(2), np.array([[1, 1], [0, 1]]))
    x = to_go @ token_reward.ravel()
    z = (x - x.mean()) / x.std(ddof=1)
    expected = (np.eye(4) - 1 / 4 - np.outer(z, z) / 3) / x.std(ddof=1) @ to_go
    each = jnp.zeros((1, 2)), jnp.ones((1, 2), bool)
    plus = ReinforcePlusPlus(eps=0.0)

    def flat(r):
        return plus(*each, token_reward=r.reshape(1, 2, 2), mask=jnp.ones((1, 2, 2), bool)).ravel()

    actual = jax.jit(jax.jacobian(flat))(jnp.asarray(token_reward.ravel(), jnp.float32))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_values_hash_compare_and_print():
    assert repr(ReinforcePlusPlus()) == "ReinforcePlusPlus(gamma=1.0, eps=1e-08)"
    assert repr(GroupBaselineWhitened()) == "GroupBaselineWhitened(eps=1e-08)"
    assert repr(Gae(lam=0.95)) == "Gae(gamma=1.0, lam=0.95, whiten=True, eps=1e-08)"
    for component in (ReinforcePlusPlus, GroupBaselineWhitened, Gae):
        assert component(eps=1e-4) == component(eps=1e-4)
        assert hash(component(eps=1e-4)) == hash(component(eps=1e-4))
        with pytest.raises(ValueError, match=r"eps must be a finite number >= 0.0, got -1"):
            component(eps=-1.0)


def test_bad_parameters_and_inputs_are_refused():
    with pytest.raises(ValueError, match=r"gamma must be a number from 0 to 1, got 1.1"):
        ReinforcePlusPlus(gamma=1.1)
    with pytest.raises(ValueError, match="lam must be a number from 0 to 1, got nan"):
        Gae(lam=float("nan"))
    with pytest.raises(ValueError, match=r"gamma must be a number from 0 to 1, got -0.1"):
        Gae(gamma=-0.1)
    each, tokens, mask = (jnp.zeros((2, 3)), jnp.ones((2, 3), bool)), jnp.zeros((2, 3, 4)), jnp.ones((2, 3, 4), bool)
    with pytest.raises(ValueError, match=r"token_reward has shape \(2, 3, 5\), but mask has shape \(2, 3, 4\)"):
        ReinforcePlusPlus()(*each, token_reward=jnp.zeros((2, 3, 5)), mask=mask)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 4, 3\), but reward has shape \(2, 3\)"):
        GroupBaselineWhitened()(*each, mask=mask.reshape(2, 4, 3))
    with pytest.raises(TypeError, match="mask must be boolean"):
        GroupBaselineWhitened()(*each, mask=tokens)
    with pytest.raises(TypeError, match="token_reward must hold floating-point numbers"):
        ReinforcePlusPlus()(*each, token_reward=tokens.astype(int), mask=mask)
    with pytest.raises(ValueError, match=r"value has shape \(2, 3\), but token_reward has shape \(2, 3, 4\)"):
        Gae()(*each, token_reward=tokens, value=each[0], mask=mask)
    with pytest.raises(TypeError, match="value must hold floating-point numbers"):
        Gae()(*each, token_reward=tokens, value=tokens.astype(int), mask=mask)

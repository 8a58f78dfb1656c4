import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core import PpoClip, grpo, policy_loss, sequence_mean, sft, token_mean
from grpo_jax.core.objective import Objective
from grpo_jax.core.preference import Dpo, Ipo, preference_loss
from grpo_jax.core.unified import gradient_weights

MASK = np.array([[True, True, True, False], [True, False, True, False], [False] * 4])
LOG_RATIO = np.array([[0.5, 0.1, -0.4, 0.0], [0.4, 0.0, -0.6, 0.0], [0.0] * 4])
ADVANTAGE = np.array([[2.0] * 4, [-1.0] * 4, [5.0] * 4])
LIVE = np.array([[False, True, True, False], [True, False, False, False], [False] * 4])
"""Which ratios a clip at 0.2 leaves alone: with A > 0 those below 1.2, with A < 0 those above 0.8."""


def policy_batch(rng):
    """Returns logp and what else `policy_loss` reads of the batch above, with NaN wherever the mask is False."""
    logp = -rng.random((3, 4)).astype(np.float32)
    others = {"old_logp": logp - LOG_RATIO, "ref_logp": logp - 0.3 * rng.normal(size=(3, 4)), "advantage": ADVANTAGE}
    hide = lambda x: jnp.asarray(np.where(MASK, x, np.nan), jnp.float32)  # noqa: E731
    return hide(logp), {name: hide(x) for name, x in others.items()} | {"mask": jnp.asarray(MASK)}


def pair_batch(rng):
    """Returns logp and what else `preference_loss` reads: two pairs that count and one that does not."""
    logp, ref_logp = -rng.random((2, 3, 2, 4)).astype(np.float32)
    mask = np.stack([MASK[:2], MASK[1::-1], MASK[1:]])
    hide = lambda x: jnp.asarray(np.where(mask, x, np.nan))  # noqa: E731
    return hide(logp), {"ref_logp": hide(ref_logp), "mask": jnp.asarray(mask)}


def of_policy(objective, **tokens):
    return lambda logp: policy_loss(objective, logp=logp, **tokens)[0]


def of_pairs(loss, **tokens):
    return lambda logp: preference_loss(loss, logp=logp, **tokens)


def test_fine_tuning_raises_every_token_alike(rng):
    """L = -(1/N) sum logp: w = 1/N over tokens; over completions first, 1/(rows |o|)."""
    logp, tokens = policy_batch(rng)
    tokens = {"mask": tokens["mask"], "advantage": jnp.ones((3, 4))}
    weights = gradient_weights(of_policy(sft(), **tokens), logp)
    np.testing.assert_allclose(weights, MASK / 5, rtol=1e-6)
    by_row = Objective(advantage=None, surrogate=sft().surrogate, aggregate=sequence_mean)
    weights = gradient_weights(of_policy(by_row, **tokens), logp)
    np.testing.assert_allclose(weights, MASK / np.array([[6.0], [4.0], [1.0]]), rtol=1e-6)


def test_dpo_raises_the_chosen_as_much_as_it_lowers_the_rejected(rng):
    """w = +-beta sigmoid(-beta h) / pairs: the less a pair is in order, the more it counts."""
    logp, tokens = pair_batch(rng)
    weights = gradient_weights(of_pairs(Dpo(beta=0.5), **tokens), logp)
    mask = np.asarray(tokens["mask"])
    gap = np.where(mask, logp - tokens["ref_logp"], 0.0).sum(axis=-1)
    slope = 0.5 / (1 + np.exp(0.5 * (gap[:, 0] - gap[:, 1]))) / 2 * [1, 1, 0]
    np.testing.assert_allclose(weights, slope[:, None, None] * mask * np.array([[1.0], [-1.0]]), rtol=1e-5)


def test_grpo_weighs_by_advantage_and_by_the_pull_of_the_reference(rng):
    """L = -r A and k3 = e^d - d - 1 with d = ref - logp: w = (r A live + kl_coef (e^d - 1)) / (rows |o|)."""
    logp, tokens = policy_batch(rng)
    weights = gradient_weights(of_policy(grpo(), **tokens), logp)
    pull = np.exp(np.where(MASK, tokens["ref_logp"] - logp, 0.0)) - 1
    expected = np.where(LIVE, np.exp(LOG_RATIO) * ADVANTAGE, 0.0) + 0.04 * pull
    np.testing.assert_allclose(weights, expected * MASK / np.array([[6.0], [4.0], [1.0]]), rtol=2e-5, atol=1e-8)


def test_ppo_weighs_by_ratio_and_advantage_until_a_bound_acts(rng):
    """L = -min(r A, clip(r) A) over tokens: w = r A / N, and exactly 0 where the clip is the minimum."""
    logp, tokens = policy_batch(rng)
    tokens.pop("ref_logp")
    weights = gradient_weights(of_policy(Objective(surrogate=PpoClip(), aggregate=token_mean), **tokens), logp)
    np.testing.assert_allclose(weights, np.where(LIVE, np.exp(LOG_RATIO) * ADVANTAGE, 0.0) / 5, rtol=2e-5)
    np.testing.assert_array_equal(np.asarray(weights)[~LIVE], 0.0)


OBJECTIVES = {
    "sft": (sft(), policy_batch, of_policy),
    "ppo": (Objective(surrogate=PpoClip(), aggregate=token_mean), policy_batch, of_policy),
    "grpo": (grpo(), policy_batch, of_policy),
    "dpo": (Dpo(beta=0.5), pair_batch, of_pairs),
    "ipo": (Ipo(beta=0.5), pair_batch, of_pairs),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_weights_do_not_depend_on_padding(rng, name):
    term, batch, form = OBJECTIVES[name]
    logp, tokens = batch(rng)
    clean = {name: x if name == "mask" else jnp.where(tokens["mask"], x, -1.0) for name, x in tokens.items()}
    weights = gradient_weights(form(term, **tokens), logp)
    expected = gradient_weights(form(term, **clean), jnp.where(tokens["mask"], logp, 3.0))
    np.testing.assert_array_equal(weights, expected)
    np.testing.assert_array_equal(np.asarray(weights)[~np.asarray(tokens["mask"])], 0.0)
    assert np.abs(weights).max() > 0.01


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_weighted_sum_of_score_functions_is_the_gradient_of_the_loss(float64, rng, name):
    """-grad_theta L = sum_t w_t grad_theta log pi_t, with each grad_theta log pi_t of a softmax taken by itself."""
    term, batch, form = OBJECTIVES[name]
    logp, tokens = batch(rng)
    features = jnp.asarray(rng.normal(size=(*logp.shape, 3)))
    drawn = jnp.asarray(rng.integers(0, 6, logp.shape))
    theta = jnp.asarray(0.1 * rng.normal(size=(3, 6)))

    def token_logp(theta):
        return jnp.take_along_axis(jax.nn.log_softmax(features @ theta), drawn[..., None], axis=-1)[..., 0]

    loss = form(term, **tokens)
    weights = gradient_weights(loss, token_logp(theta))
    scores = np.eye(6)[np.asarray(drawn)] - np.asarray(jax.nn.softmax(features @ theta))
    axes = "abc"[: logp.ndim]
    expected = -np.einsum(f"{axes},{axes}d,{axes}v->dv", weights, features, scores)
    actual = jax.grad(lambda theta: loss(token_logp(theta)).mean())(theta)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)
    assert np.abs(actual).max() > 0.01


def test_jit_changes_nothing_and_half_precision_is_widened(rng):
    logp, tokens = policy_batch(rng)
    weights = gradient_weights(of_policy(grpo(), **tokens), logp)
    jitted = jax.jit(lambda logp: gradient_weights(of_policy(grpo(), **tokens), logp))(logp)
    np.testing.assert_allclose(jitted, weights, rtol=1e-6, atol=1e-8)
    assert gradient_weights(lambda x: token_mean(x, MASK), jnp.zeros((3, 4), jnp.bfloat16)).dtype == jnp.float32


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="logp must hold floating-point numbers, got dtype int32"):
        gradient_weights(lambda x: token_mean(x, MASK), jnp.zeros((3, 4), jnp.int32))
    with pytest.raises(ValueError, match=r"logp needs the trailing axes \[..., T\], got shape \(\)"):
        gradient_weights(lambda x: token_mean(x, MASK), jnp.zeros(()))

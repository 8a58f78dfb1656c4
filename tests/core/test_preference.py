import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from grpo_jax.core.naming import show
from grpo_jax.core.preference import (
    Dpo,
    Ipo,
    IpoPerToken,
    margin,
    mean_margin,
    pair_losses,
    pair_mean,
    preference_loss,
    scored_pairs,
)
from grpo_jax.testing import oracle

LOSSES = [Dpo(beta=0.3), Dpo(beta=0.5, label_smoothing=0.1), Ipo(beta=0.2), IpoPerToken(beta=0.2)]


def batch(rng, pairs=5, length=4, scale=1.0):
    """Returns logp, ref_logp and mask [pairs, 2, length]; every row has a scored token."""
    logp, ref_logp = (-scale * rng.random((pairs, 2, length)) for _ in range(2))
    mask = rng.random((pairs, 2, length)) < 0.6
    mask[..., 0] = True
    return {"logp": jnp.asarray(logp), "ref_logp": jnp.asarray(ref_logp), "mask": jnp.asarray(mask)}


def slow(loss, logp, ref_logp, mask):
    """Returns the oracle's loss of each pair, None where a row has no scored token."""
    margins = [
        oracle.pair_margin(*pair, per_token=isinstance(loss, IpoPerToken))
        for pair in zip(*map(np.asarray, (logp, ref_logp, mask)), strict=True)
    ]
    if isinstance(loss, Dpo):
        return [
            h if h is None else oracle.dpo(h, beta=loss.beta, label_smoothing=loss.label_smoothing) for h in margins
        ]
    return [h if h is None else oracle.ipo(h, beta=loss.beta) for h in margins]


@pytest.mark.parametrize("loss", LOSSES, ids=show)
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_values_equal_the_oracle(rng, loss, scale):
    tokens = batch(rng, scale=scale)
    np.testing.assert_allclose(pair_losses(loss, **tokens), slow(loss, **tokens), rtol=3e-5, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e4, 1e4), st.sampled_from(LOSSES))
def test_values_at_any_margin_equal_the_oracle(h, loss):
    h = float(np.float32(h))
    smoothing = {"label_smoothing": loss.label_smoothing} if isinstance(loss, Dpo) else {}
    expected = (oracle.dpo if isinstance(loss, Dpo) else oracle.ipo)(h, beta=loss.beta, **smoothing)
    np.testing.assert_allclose(loss(jnp.float32(h)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("h", [-3000.0, -2.0, 0.0, 1.5, 3000.0])
def test_gradient_of_dpo_on_every_token(h):
    """L = softplus(-beta h), h = sum of chosen - sum of rejected: dL/dlogp = -+ beta sigmoid(-beta h) = -+ beta p.

    At h = 0 the label is as likely as not and p = 1/2; at h = 3000, p = e^-300 is 0 in float32; at -3000 it is 1.
    """
    beta = 0.1
    logp = jnp.array([[[h / 2, h / 2, jnp.nan], [0.0, jnp.inf, 0.0]]])
    mask = jnp.array([[[True, True, False], [True, False, True]]])
    actual = jax.grad(lambda x: preference_loss(Dpo(beta=beta), logp=x, ref_logp=0 * mask, mask=mask).mean())(logp)
    slope = beta / (1 + math.exp(min(beta * h, 700)))
    np.testing.assert_allclose(actual[0, 0, :2], [-slope] * 2, rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(actual[0, 1, ::2], [slope] * 2, rtol=1e-6, atol=1e-30)
    np.testing.assert_array_equal([actual[0, 0, 2], actual[0, 1, 1]], 0.0)


@pytest.mark.parametrize("side", [-1.0, 0.0, 1.0])
def test_smoothed_labels_pull_the_margin_to_their_odds(side):
    """dL/dh = -beta (sigmoid(-beta h) - e): 0 at beta h = log((1 - e) / e), and of the sign of what is beyond."""
    beta, e = 0.5, 0.2
    h = math.log((1 - e) / e) / beta + side
    expected = -beta * (1 / (1 + math.exp(beta * h)) - e)
    np.testing.assert_allclose(jax.grad(Dpo(beta=beta, label_smoothing=e))(h), expected, atol=1e-7)
    assert np.sign(round(expected, 12)) == side


@pytest.mark.parametrize(("loss", "shares"), [(Ipo(beta=0.25), (1.0, 1.0)), (IpoPerToken(beta=0.25), (1 / 2, 1 / 3))])
@pytest.mark.parametrize("h", [-1.0, 2.0, 3.5])
def test_gradient_of_ipo_below_at_and_above_its_target(loss, shares, h):
    """L = (h - 1/(2 beta))^2: dL/dlogp = 2 (h - 2) times dh/dlogp, that is +-1, or +-1/|y| per token."""
    mask = jnp.array([[[True, True, False], [True, True, True]]])
    logp = jnp.zeros((1, 2, 3)).at[0, 0, 0].set(h / shares[0])
    actual = jax.grad(lambda x: preference_loss(loss, logp=x, ref_logp=jnp.zeros((1, 2, 3)), mask=mask).mean())(logp)
    slope = 2 * (h - 2.0)
    expected = np.array([[[1, 1, 0], [0, 0, 0]], [[0, 0, 0], [-1, -1, -1]]])
    np.testing.assert_allclose(actual[0], slope * (shares[0] * expected[0] + shares[1] * expected[1]), rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=show)
def test_gradients_are_numerical_in_float64(float64, rng, loss):
    tokens = batch(rng)
    logp = tokens.pop("logp")
    check_grads(lambda x: preference_loss(loss, logp=x, **tokens).mean(), (logp,), order=1, modes=["rev"])


def test_the_reference_has_no_gradient(rng):
    tokens = batch(rng)
    ref_logp = tokens.pop("ref_logp")
    actual = jax.grad(lambda x: preference_loss(Dpo(), ref_logp=x, **tokens).mean())(ref_logp)
    np.testing.assert_array_equal(actual, 0.0)


def test_margins_change_their_sign_with_the_order_of_the_pair(rng):
    tokens = batch(rng)
    exchanged = {name: x[:, ::-1] for name, x in tokens.items()}
    for h in (margin, mean_margin):
        np.testing.assert_allclose(h(**exchanged), -np.asarray(h(**tokens)), rtol=1e-6)


def test_swapping_policy_and_reference_changes_the_sign_and_the_same_policy_has_margin_0(rng):
    tokens = batch(rng)
    logp, ref_logp, mask = tokens.values()
    np.testing.assert_allclose(margin(ref_logp, logp, mask), -np.asarray(margin(logp, ref_logp, mask)), rtol=1e-6)
    np.testing.assert_array_equal(margin(logp, logp, mask), 0.0)
    np.testing.assert_allclose(preference_loss(Dpo(), logp=logp, ref_logp=logp, mask=mask).mean(), math.log(2))


def test_one_token_each_makes_both_readings_of_ipo_one(rng):
    tokens = batch(rng, length=1)
    expected = pair_losses(Ipo(beta=0.3), **tokens)
    np.testing.assert_allclose(pair_losses(IpoPerToken(beta=0.3), **tokens), expected, rtol=1e-6)


def test_dpo_loss_of_a_label_and_of_its_opposite_differ_by_the_logit():
    """-log sigmoid(-x) + log sigmoid(x) = x."""
    h = jnp.linspace(-9.0, 9.0, 7)
    np.testing.assert_allclose(Dpo(beta=0.5)(-h) - Dpo(beta=0.5)(h), 0.5 * h, atol=2e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=show)
def test_permuting_the_pairs_permutes_the_losses(rng, loss):
    tokens = batch(rng)
    order = rng.permutation(5)
    moved = pair_losses(loss, **{name: x[order] for name, x in tokens.items()})
    np.testing.assert_allclose(moved, np.asarray(pair_losses(loss, **tokens))[order], rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=show)
@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
def test_padding_and_incomplete_pairs_change_nothing(rng, loss, junk):
    tokens = batch(rng)
    total = lambda logp, ref_logp, mask: preference_loss(loss, logp=logp, ref_logp=ref_logp, mask=mask).mean()  # noqa: E731
    expected, gradient = jax.value_and_grad(total)(*tokens.values())
    padded = {name: jnp.where(tokens["mask"], tokens[name], junk) for name in ("logp", "ref_logp")}
    empty = jnp.full((2, 2, 4), junk)
    half = jnp.zeros((2, 2, 4), bool).at[0, 0].set(True).at[1, 1].set(True)
    more = {name: jnp.concatenate([x, jnp.where(half, 0.0, empty)]) for name, x in padded.items()}
    mask = jnp.concatenate([tokens["mask"], half])
    actual, with_more = jax.value_and_grad(total)(more["logp"], more["ref_logp"], mask)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    np.testing.assert_allclose(with_more[:5], gradient, rtol=1e-6)
    np.testing.assert_array_equal(with_more[5:], 0.0)
    np.testing.assert_array_equal(pair_losses(loss, **more, mask=mask)[5:], 0.0)
    np.testing.assert_array_equal(scored_pairs(mask), [True] * 5 + [False] * 2)


@pytest.mark.parametrize("loss", LOSSES, ids=show)
def test_a_batch_without_a_pair_has_loss_0_and_gradient_0(loss):
    nothing = jnp.full((2, 2, 3), jnp.nan)
    tokens = {"ref_logp": nothing, "mask": jnp.zeros((2, 2, 3), bool)}
    value, gradient = jax.value_and_grad(lambda x: preference_loss(loss, logp=x, **tokens).mean())(nothing)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_parts_of_a_batch_add_up(rng):
    tokens = batch(rng)
    first, second = ({name: x[part] for name, x in tokens.items()} for part in (slice(2), slice(2, None)))
    whole = preference_loss(Dpo(), **tokens)
    parts = preference_loss(Dpo(), **first) + preference_loss(Dpo(), **second)
    chex.assert_trees_all_close(parts, whole, rtol=1e-6)
    assert whole.weight == 5.0


def test_half_precision_is_widened():
    tokens = {"logp": jnp.full((1, 2, 300), -1.0, jnp.bfloat16).at[:, 0].set(-0.99609375)}
    tokens |= {"ref_logp": jnp.full((1, 2, 300), -1.0, jnp.bfloat16), "mask": jnp.ones((1, 2, 300), bool)}
    np.testing.assert_allclose(margin(**tokens), [300 * 0.00390625], rtol=1e-6)
    assert pair_losses(Dpo(), **tokens).dtype == jnp.float32


class JitEqualsEager(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*LOSSES)
    def test_all(self, loss):
        tokens = batch(np.random.default_rng(1))
        actual = self.variant(lambda **tokens: preference_loss(loss, **tokens))(**tokens)
        chex.assert_trees_all_close(actual.total, np.float32(sum(slow(loss, **tokens))), rtol=1e-5)
        assert actual.weight == 5.0


def test_bad_parameters_are_refused():
    for loss in (Dpo, Ipo, IpoPerToken):
        with pytest.raises(ValueError, match="beta must be above 0, got 0"):
            loss(beta=0.0)
        with pytest.raises(ValueError, match=r"beta must be a finite number >= 0.0, got nan"):
            loss(beta=math.nan)
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 0.5\), got 0.5"):
        Dpo(label_smoothing=0.5)
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 0.5\), got -0.1"):
        Dpo(label_smoothing=-0.1)


def test_bad_arrays_are_refused():
    x, mask = jnp.zeros((2, 2, 3)), jnp.ones((2, 2, 3), bool)
    with pytest.raises(TypeError, match="mask must be boolean"):
        preference_loss(Dpo(), logp=x, ref_logp=x, mask=x)
    with pytest.raises(ValueError, match=r"ref_logp has shape \(2, 3\), but logp has shape \(2, 2, 3\)"):
        preference_loss(Dpo(), logp=x, ref_logp=x[0], mask=mask)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 3\), but logp has shape \(2, 2, 3\)"):
        preference_loss(Dpo(), logp=x, ref_logp=x, mask=mask[0])
    with pytest.raises(ValueError, match=r"logp needs \[..., 2, T\] \(chosen, rejected\), got shape \(2, 3, 4\)"):
        margin(jnp.zeros((2, 3, 4)), jnp.zeros((2, 3, 4)), jnp.ones((2, 3, 4), bool))
    with pytest.raises(ValueError, match=r"mask needs \[..., 2, T\] \(chosen, rejected\), got shape \(3, 4\)"):
        scored_pairs(jnp.ones((3, 4), bool))
    with pytest.raises(ValueError, match=r"scored has shape \(3,\), but x has shape \(2,\)"):
        pair_mean(jnp.zeros(2), jnp.ones(3, bool))


def test_values_hash_compare_and_print():
    assert hash(Dpo(beta=0.2)) == hash(Dpo(beta=0.2))
    assert Ipo(beta=0.2) != IpoPerToken(beta=0.2)
    assert repr(Dpo()) == "Dpo(beta=0.1, label_smoothing=0.0)"
    assert repr(IpoPerToken(beta=0.2)) == "IpoPerToken(beta=0.2)"

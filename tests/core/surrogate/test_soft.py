import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from grpo_jax.core.surrogate import Sapo, Vespo
from grpo_jax.testing import oracle

TEMPERATURES = {"positive": 1.0, "negative": 1.05}
POWERS = {"k_positive": 2.0, "lambda_positive": 3.0, "k_negative": 3.0, "lambda_negative": 2.0}
MASK = np.array([[True, True, False], [True, False, True], [False] * 3])


@settings(max_examples=60, deadline=None)
@given(st.floats(-6, 4, width=32), st.floats(-3, 3, width=32))
def test_sapo_equals_the_oracle(log_ratio, advantage):
    loss, clipped = Sapo()(*map(jnp.array, ([log_ratio], [0.0], [advantage])))
    expected = oracle.sapo(math.exp(log_ratio), advantage, **TEMPERATURES)
    np.testing.assert_allclose(loss, [expected], rtol=2e-5, atol=1e-6)
    assert not clipped[0]


@pytest.mark.parametrize("log_ratio", [-8.0, -1.0, 0.0, 0.5, 2.0])
@pytest.mark.parametrize(("advantage", "tau"), [(1.5, 1.0), (-1.5, 1.05)])
def test_gradient_of_sapo_by_hand(log_ratio, advantage, tau):
    """L = -(4 / tau) p A with p = sigmoid(tau (r - 1)) and dp/ds = p (1 - p) tau r, so dL/ds = -4 p (1 - p) r A.

    The derivative of expm1 is computed as expm1 + 1, so a ratio is known to within one rounding of 1.
    """
    got = jax.grad(lambda s: Sapo()(s, s, jnp.array([advantage]))[0].sum())(jnp.array([log_ratio]))
    ratio = math.exp(log_ratio)
    p = 1 / (1 + math.exp(-tau * (ratio - 1)))
    np.testing.assert_allclose(got, [-4 * p * (1 - p) * ratio * advantage], rtol=2e-6, atol=1.2e-7)


def test_sapo_at_policy_equality_has_the_gradient_of_reinforce():
    for positive, negative in ((1.0, 1.05), (0.3, 5.0)):
        surrogate = Sapo(positive=positive, negative=negative)
        advantage = jnp.array([2.0, -3.0, 0.0])
        got = jax.grad(lambda s, f=surrogate, a=advantage: f(s, s, a)[0].sum())(jnp.zeros(3))
        np.testing.assert_allclose(got, -advantage, rtol=1e-6)


@pytest.mark.parametrize("log_ratio", [5.0, 88.0, 89.0, 400.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_sapo_saturates_without_an_overflow(log_ratio, advantage):
    """f tends to 4 / tau, and its slope to 0: no infinity times 0."""
    value, slope = jax.value_and_grad(lambda s: Sapo()(s, s, jnp.array([advantage]))[0].sum())(jnp.array([log_ratio]))
    np.testing.assert_allclose(value, -4 * advantage / (1.0 if advantage > 0 else 1.05), rtol=1e-6)
    np.testing.assert_allclose(slope, 0.0, atol=1e-30)


def test_the_gate_of_sapo_fades_on_both_sides_and_faster_downwards():
    """The slope per unit of r A is 4 p (1 - p): largest at r = 1, symmetric in r - 1, smaller for A < 0."""
    ratio = jnp.array([0.2, 0.6, 1.0, 1.4, 1.8])
    slope = lambda a: jax.grad(lambda s: Sapo()(s, s, jnp.full(5, a))[0].sum())(jnp.log(ratio)) / ratio  # noqa: E731
    up, down = -slope(1.0), slope(-1.0)
    np.testing.assert_allclose(up, up[::-1], rtol=1e-5)
    assert (jnp.diff(up[:3]) > 0).all()
    assert (down < up)[jnp.array([0, 1, 3, 4])].all()


def test_vespo_equals_the_oracle():
    rng = np.random.default_rng(0)
    log_ratio = rng.normal(size=MASK.shape) * 0.7
    logp, advantage = rng.uniform(-3, 0, MASK.shape), rng.normal(size=MASK.shape)
    filled = [jnp.asarray(np.where(MASK, x, 0.0), jnp.float32) for x in (log_ratio, logp, advantage)]
    loss, clipped = Vespo()(*filled, mask=MASK)
    for b in range(2):
        keep = MASK[b]
        expected = oracle.vespo(np.exp(log_ratio[b][keep]), advantage[b][keep], logp[b][keep], **POWERS)
        np.testing.assert_allclose(loss[b][keep], expected, rtol=1e-5)
    assert not clipped.any()


@pytest.mark.parametrize("total", [-60.0, -3.0, 0.0, math.log(2 / 3), 1.0, 30.0, 400.0])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_gradient_of_vespo_by_hand(total, advantage):
    """L_t = -sg(phi(w)) A logp_t: dL/dlogp_t = -phi(w) A for every token of the row, none through w.

    phi(w) = w^k e^(lambda (1 - w)); a w of e^30 or more has phi 0, and so has one of e^-60 in float32.
    """
    k, decay = (2.0, 3.0) if advantage > 0 else (3.0, 2.0)
    log_ratio = jnp.array([[total / 2, total / 2]])
    loss = lambda s, p: Vespo()(s, p, jnp.full((1, 2), advantage), mask=jnp.ones((1, 2), bool))[0].sum()  # noqa: E731
    slopes = jax.grad(loss, (0, 1))(log_ratio, jnp.array([[-1.0, -2.0]]))
    phi = math.exp(k * total + decay * (1 - math.exp(total))) if total < 20 else 0.0
    np.testing.assert_array_equal(slopes[0], 0.0)
    np.testing.assert_allclose(slopes[1], [[-phi * advantage] * 2], rtol=1e-5, atol=1e-30)


def test_vespo_weighs_1_at_policy_equality_and_most_at_k_over_lambda():
    ones = jnp.ones((1, 1), bool)
    phi = lambda w: -Vespo()(jnp.log(jnp.array([[w]])), jnp.ones((1, 1)), jnp.ones((1, 1)), mask=ones)[0].item()  # noqa: E731
    np.testing.assert_allclose(phi(1.0), 1.0, rtol=1e-6)
    assert phi(2 / 3) > max(phi(0.6), phi(0.73))


def test_padding_reaches_neither_value_nor_gradient_of_vespo():
    def run(filler):
        log_ratio = jnp.where(MASK, 0.3, filler)
        loss = lambda s: jnp.sum(Vespo()(s, s, jnp.where(MASK, 1.0, 0.0), mask=MASK)[0], where=MASK)  # noqa: E731
        return jax.value_and_grad(loss)(log_ratio)

    value, slope = run(0.0)
    for filler in (jnp.nan, jnp.inf):
        chex.assert_trees_all_equal((run(filler)[0], jnp.where(MASK, run(filler)[1], 0.0)), (value, slope))


def test_gradients_are_numerical_in_float64(float64):
    log_ratio = jnp.array([[-2.0, -0.3, 0.4, 1.5, 3.0]])
    advantage = jnp.array([[1.0, -2.0, 0.5, -1.0, 2.0]])
    check_grads(lambda s: Sapo()(s, s, advantage)[0], (log_ratio,), order=1, modes=["rev"])
    ones = jnp.ones((1, 5), bool)
    check_grads(lambda p: Vespo()(log_ratio / 5, p, advantage, mask=ones)[0], (log_ratio,), order=1, modes=["rev"])


class JitEqualsEager(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_both(self):
        log_ratio = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)
        advantage = np.where(np.arange(8) % 2, 1.0, -1.0).reshape(2, 4).astype(np.float32)
        loss, _ = self.variant(Sapo())(log_ratio, log_ratio, advantage)
        pairs = zip(np.exp(np.float64(log_ratio)).ravel(), advantage.ravel(), strict=True)
        expected = np.array([oracle.sapo(r, a, **TEMPERATURES) for r, a in pairs], np.float32).reshape(2, 4)
        chex.assert_trees_all_close(loss, expected, rtol=2e-5)
        mask = np.ones((2, 4), bool)
        loss, _ = self.variant(Vespo())(log_ratio, log_ratio, advantage, mask=mask)
        rows = zip(np.exp(np.float64(log_ratio)), advantage, log_ratio, strict=True)
        expected = np.array([oracle.vespo(*row, **POWERS) for row in rows], np.float32)
        chex.assert_trees_all_close(loss, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["positive", "negative"])
def test_temperatures_that_are_not_above_0_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a finite number > 0, got {value}"):
        Sapo(**{name: value})


@pytest.mark.parametrize("name", POWERS)
def test_powers_below_0_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0"):
        Vespo(**{name: -1.0})


def test_bad_inputs_are_refused():
    zeros = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"advantage has shape \(3,\), but log_ratio has shape \(2, 3\)"):
        Sapo()(zeros, zeros, jnp.zeros(3))
    with pytest.raises(TypeError, match="mask must be boolean"):
        Vespo()(zeros, zeros, zeros, mask=zeros)


def test_values_hash_compare_and_print():
    assert Sapo() == Sapo(**TEMPERATURES)
    assert hash(Vespo()) == hash(Vespo(**POWERS))
    assert repr(Sapo()) == "Sapo(positive=1.0, negative=1.05)"

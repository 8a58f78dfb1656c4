import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from grpo_jax.core import FullVocabulary, exact, k1, k2, k3, kl_divergence
from grpo_jax.core.slots import asks
from grpo_jax.testing import oracle

logps = st.floats(-20, 0, width=32)
estimators = pytest.mark.parametrize("estimator", [k1, k2, k3])


def log_probabilities(rng, *shape):
    return jax.nn.log_softmax(jnp.asarray(rng.normal(size=shape) * 2))


@estimators
def test_values_equal_the_oracle(rng, estimator):
    logp, ref = rng.uniform(-4, 0, (2, 3, 50)).astype(np.float32)
    expected = getattr(oracle, estimator.__name__)(logp, ref)
    np.testing.assert_allclose(estimator(logp, ref), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(jax.jit(estimator)(logp, ref), estimator(logp, ref))


@settings(max_examples=200, deadline=None)
@given(logps, logps)
def test_k3_is_never_negative_and_0_only_at_equality(logp, ref):
    value = k3(jnp.array(logp), jnp.array(ref))
    assert value >= 0
    assert k3(jnp.array(logp), jnp.array(logp)) == 0
    if abs(logp - ref) > 1e-3:
        assert value > 0


@pytest.mark.parametrize("difference", [1e-1, 1e-2, 1e-3])
def test_k3_keeps_its_digits_near_equality(difference):
    """k3 = d^2/2 + d^3/6 + ...: exp(d) - 1 - d would leave no digit of it at d = 1e-3 in float32."""
    d = np.float64(np.float32(difference))
    actual = k3(jnp.float32(0.0), jnp.float32(difference))
    np.testing.assert_allclose(actual, d**2 / 2 + d**3 / 6 + d**4 / 24 + d**5 / 120, rtol=1e-3)


@pytest.mark.parametrize(
    ("estimator", "slope"),
    [(k1, lambda d: 1.0), (k2, lambda d: d), (k3, lambda d: 1 - np.exp(-d))],
)
@pytest.mark.parametrize("difference", [-2.0, -0.5, 0.0, 0.5, 2.0])
def test_gradient_on_logp(estimator, slope, difference):
    """With d = log pi - log ref: k1 = d, k2 = d^2/2, k3 = exp(-d) + d - 1, so the slopes are 1, d and 1 - exp(-d)."""
    actual = jax.grad(estimator)(jnp.float32(difference - 1.0), jnp.float32(-1.0))
    np.testing.assert_allclose(actual, slope(difference), rtol=1e-5, atol=1e-6)


@estimators
def test_gradients_are_numerical_in_float64(float64, rng, estimator):
    logp, ref = jnp.asarray(rng.uniform(-3, 0, (2, 6)))
    check_grads(lambda x: estimator(x, ref), (logp,), order=1, modes=["rev"])


@pytest.mark.parametrize("estimator", [k1, k3])
def test_estimators_are_unbiased(float64, rng, estimator):
    """sum_v pi(v) k(v) is the exact KL: an expectation by enumeration, not by sampling."""
    logp, ref = log_probabilities(rng, 2, 11)
    np.testing.assert_allclose(jnp.sum(jnp.exp(logp) * estimator(logp, ref)), kl_divergence(logp, ref), rtol=1e-12)


def test_expected_gradients_of_the_estimators(float64, rng):
    """sum_v pi_v (dk/dlogp)_v dlogp_v: 0 for k1, grad KL(pi||ref) for k2, grad KL(ref||pi) for k3."""
    logits, ref = jnp.asarray(rng.normal(size=7)), log_probabilities(rng, 7)
    logp = jax.nn.log_softmax(logits)

    def expected(estimator):
        weight = jnp.exp(logp)
        return jax.grad(lambda z: jnp.sum(weight * estimator(jax.nn.log_softmax(z), ref)))(logits)

    reverse = jax.grad(lambda z: kl_divergence(jax.nn.log_softmax(z), ref))(logits)
    forward = jax.grad(lambda z: kl_divergence(ref, jax.nn.log_softmax(z)))(logits)
    np.testing.assert_allclose(expected(k1), 0.0, atol=1e-12)
    np.testing.assert_allclose(expected(k2), reverse, atol=1e-12)
    np.testing.assert_allclose(expected(k3), forward, atol=1e-12)


def test_the_exact_divergence_equals_the_oracle(rng):
    logp, ref = log_probabilities(rng, 2, 3, 5, 17)
    np.testing.assert_allclose(kl_divergence(logp, ref), oracle.kl_divergence(logp, ref), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(kl_divergence)(logp, ref), kl_divergence(logp, ref), rtol=1e-6)


def test_gradient_of_the_exact_divergence(rng):
    """d/dz_v KL(softmax(z)||ref) = p_v (log p_v - log ref_v - KL)."""
    logits, ref = jnp.asarray(rng.normal(size=9), jnp.float32), log_probabilities(rng, 9)
    logp = jax.nn.log_softmax(logits)
    actual = jax.grad(lambda z: kl_divergence(jax.nn.log_softmax(z), ref))(logits)
    expected = jnp.exp(logp) * (logp - ref - kl_divergence(logp, ref))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("nothing", [-np.inf, -200.0])
def test_entries_without_probability_contribute_nothing(nothing):
    logits = jnp.array([0.0, 1.0, nothing, nothing], jnp.float32)
    ref = jnp.array([-1.0, -0.5, -np.inf, -3.0], jnp.float32)

    def f(logits, ref):
        return kl_divergence(jax.nn.log_softmax(logits), ref)

    (value, slopes) = jax.value_and_grad(f, (0, 1))(logits, ref)
    (expected, expected_slopes) = jax.value_and_grad(f, (0, 1))(logits[:2], ref[:2])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for slope, expected_slope in zip(slopes, expected_slopes, strict=True):
        np.testing.assert_allclose(slope, [*expected_slope, 0.0, 0.0], rtol=1e-6)


def test_a_reference_without_probability_is_infinitely_far():
    assert kl_divergence(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([1.0, 0.0]))) == np.inf


def test_a_full_vocabulary_divergence_is_a_value_that_returns_what_it_asks_for():
    assert exact == FullVocabulary(kl_divergence)
    assert hash(exact) == hash(FullVocabulary(kl_divergence))
    assert asks(exact) == ("divergence",)
    divergence = jnp.array([[0.25, jnp.nan]])
    assert exact(jnp.zeros((1, 2)), None, divergence=divergence) is divergence
    with pytest.raises(ValueError, match=r"divergence has shape \(2,\), but logp has shape \(1, 2\)"):
        exact(jnp.zeros((1, 2)), None, divergence=divergence[0])


@pytest.mark.parametrize("function", [k1, k2, k3, kl_divergence])
def test_unequal_shapes_are_refused(function):
    with pytest.raises(ValueError, match=r"ref_logp\w* has shape \(3,\), but logp\w* has shape \(2, 3\)"):
        function(jnp.zeros((2, 3)), jnp.zeros(3))

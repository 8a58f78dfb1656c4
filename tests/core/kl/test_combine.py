import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from grpo_jax.core.kl import Clamped, ImportanceWeighted, RatioWeighted, StraightThrough, absolute, exact, k1, k2, k3
from grpo_jax.core.kl.full_vocabulary import kl_divergence
from grpo_jax.core.slots import asks
from grpo_jax.testing import oracle

logps = st.floats(-60, 0, width=32)
DIFFERENCES = [-30.0, -2.0, -0.5, 0.0, 0.5, 2.0, 30.0]


def log_probabilities(rng, size, scale=1.0):
    return jax.nn.log_softmax(jnp.asarray(rng.normal(size=size) * scale))


@settings(max_examples=40, deadline=None)
@given(logps, logps, logps)
def test_values_equal_the_oracle(logp, ref, old):
    x, r = jnp.array(logp), jnp.array(ref)
    np.testing.assert_allclose(absolute(x, r), oracle.absolute(logp, ref), rtol=1e-5)
    np.testing.assert_allclose(Clamped()(x, r), oracle.clamped_k3(logp, ref), rtol=1e-4, atol=1e-6)
    expected = oracle.clamped_k3(logp, ref, log_ratio=0.5, value=0.125)
    np.testing.assert_allclose(Clamped(log_ratio=0.5, value=0.125)(x, r), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(StraightThrough()(x, r), k3(x, r))
    if ref - old < 80:
        expected = oracle.ratio_weighted_k3(logp, ref, old)
        weighted = ImportanceWeighted()(x, r, importance_log_ratio=x - old)
        np.testing.assert_array_equal(weighted, RatioWeighted()(x, r, log_ratio=x - old))
        rounding = 1e-6 * np.exp(logp - old)  # that of k3, which the ratio multiplies
        np.testing.assert_allclose(RatioWeighted()(x, r, log_ratio=x - old), expected, rtol=1e-4, atol=rounding)


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_the_gradient_of_the_absolute_value_is_a_sign(difference):
    """|d| has the slope -1 below 0, +1 above; at 0, where it has a corner, 0."""
    assert jax.grad(absolute)(jnp.float32(difference - 1), jnp.float32(-1)) == np.sign(difference)


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_straight_has_the_value_of_one_and_the_gradient_of_the_other(difference):
    """sg(k3) + k2 - sg(k2): only k2 = d^2 / 2 depends on logp, with the slope d."""
    logp, ref = jnp.float32(difference - 1), jnp.float32(-1)
    value, slope = jax.value_and_grad(StraightThrough())(logp, ref)
    assert value == k3(logp, ref)
    assert slope == difference
    value, slope = jax.value_and_grad(StraightThrough(value=k1, gradient=absolute))(logp, ref)
    assert (value, slope) == (difference, np.sign(difference))


@pytest.mark.parametrize("difference", [-2.0, -0.5, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("log_ratio", [-3.0, 0.0, 1.0])
def test_gradient_of_the_weighted_estimator(difference, log_ratio):
    """exp(s) k3(d) with ds = dd = dlogp has the slope exp(s) (k3 + k3') = e^s (e^-d + d - 1 + 1 - e^-d) = e^s d."""
    ref = jnp.float32(-1)
    old = jnp.float32(difference - 1 - log_ratio)
    actual = jax.grad(lambda x: RatioWeighted()(x, ref, log_ratio=x - old))(jnp.float32(difference - 1))
    np.testing.assert_allclose(actual, np.exp(log_ratio) * difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kl", [k1, k3])
def test_the_weighted_estimator_is_unbiased_off_policy_in_value_and_gradient(float64, rng, kl):
    """sum_v pi_old(v) (pi/pi_old kl)(v), by enumeration, is the exact KL(pi || ref), and so are their gradients."""
    logits, old, ref = jnp.asarray(rng.normal(size=9)), *(log_probabilities(rng, 9, 1.5) for _ in range(2))

    def expectation(z):
        logp = jax.nn.log_softmax(z)
        return jnp.sum(jnp.exp(old) * RatioWeighted(kl=kl)(logp, ref, log_ratio=logp - old))

    value, slope = jax.value_and_grad(expectation)(logits)
    exact_value, exact_slope = jax.value_and_grad(lambda z: kl_divergence(jax.nn.log_softmax(z), ref))(logits)
    np.testing.assert_allclose(value, exact_value, rtol=1e-12)
    np.testing.assert_allclose(slope, exact_slope, atol=1e-12)
    unweighted = jax.grad(lambda z: jnp.sum(jnp.exp(old) * kl(jax.nn.log_softmax(z), ref)))(logits)
    assert np.max(np.abs(unweighted - exact_slope)) > 0.05


def test_the_expected_gradient_of_straight_is_that_of_the_kl(float64, rng):
    """sum_v pi_v (dk/dlogp)_v dlogp_v with a detached pi: what sampling on policy differentiates."""
    logits, ref = jnp.asarray(rng.normal(size=7)), log_probabilities(rng, 7)
    weight = jax.nn.softmax(logits)
    actual = jax.grad(lambda z: jnp.sum(weight * StraightThrough()(jax.nn.log_softmax(z), ref)))(logits)
    expected = jax.grad(lambda z: kl_divergence(jax.nn.log_softmax(z), ref))(logits)
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_sampled_estimates_are_unbiased_or_not(rng):
    """The mean of 200,000 draws lies within 4 standard errors of the exact KL for k1 and k3, and far off for k2."""
    logp, ref = np.asarray(log_probabilities(rng, 6, 1.5)), np.asarray(log_probabilities(rng, 6, 1.5))
    probability = np.exp(np.float64(logp))
    drawn = rng.choice(6, size=200_000, p=probability / probability.sum())
    truth = float(oracle.kl_divergence(logp, ref))
    errors = {}
    for estimator in (k1, k2, k3):
        sample = np.asarray(estimator(jnp.asarray(logp[drawn]), jnp.asarray(ref[drawn])), np.float64)
        errors[estimator] = (sample.mean() - truth) / (sample.std() / np.sqrt(len(sample)))
    assert abs(errors[k1]) < 4
    assert abs(errors[k3]) < 4
    assert abs(errors[k2]) > 40


@pytest.mark.parametrize(
    ("difference", "slope"),
    [
        (-9.0, 0.0),
        (-3.0, 0.0),
        (-2.0, 1 - np.exp(2.0)),
        (0.0, 0.0),
        (4.0, 1 - np.exp(-4.0)),
        (5.0, 1 - np.exp(-5.0)),
        (6.0, 0.0),
        (np.inf, 0.0),
        (-np.inf, 0.0),
    ],
)
def test_gradient_below_at_and_above_both_clamps(difference, slope):
    """k3 = e^-d + d - 1 has the slope 1 - e^-d up to |d| = 5, the bound included, unless k3 > 10: so at d = -3."""
    value, actual = jax.value_and_grad(Clamped(log_ratio=5.0, value=10.0))(jnp.float32(difference), jnp.float32(0))
    if slope == 0.0:
        assert actual == 0.0
    np.testing.assert_allclose(actual, slope, rtol=1e-6)
    assert abs(value) <= 10.0


@pytest.mark.parametrize(
    ("difference", "value", "slope"), [(-4.0, -3.0, 0.0), (-3.0, -3.0, 1.0), (3.0, 3.0, 1.0), (4.0, 3.0, 0.0)]
)
def test_the_value_is_clamped_on_both_sides(difference, value, slope):
    """k1 = d is its own bound: the slope is 1 up to |d| = 3, that included, and 0 beyond."""
    actual = jax.value_and_grad(Clamped(kl=k1, value=3.0))(jnp.float32(difference), jnp.float32(0))
    np.testing.assert_array_equal(actual, (value, slope))


def test_without_a_bound_that_acts_clamping_changes_nothing(rng):
    logp, ref = rng.uniform(-2, 0, (2, 20)).astype(np.float32)
    np.testing.assert_allclose(Clamped()(logp, ref), k3(logp, ref), rtol=1e-6)


def test_gradients_are_numerical_in_float64(float64, rng):
    """Away from the corners, and without `StraightThrough`, which differentiates something else than its value."""
    logp, ref, old = jnp.asarray(rng.uniform(-3, 0, (3, 6)))
    for kl in (absolute, Clamped(value=0.5), Clamped(kl=k2, log_ratio=1.0)):
        check_grads(lambda x, kl=kl: kl(x, ref), (logp,), order=1, modes=["rev"])
    check_grads(lambda x: RatioWeighted()(x, ref, log_ratio=x - old), (logp,), order=1, modes=["rev"])


@settings(max_examples=40, deadline=None)
@given(logps, logps)
def test_distances_are_0_only_at_equality(logp, ref):
    for kl in (absolute, StraightThrough(), Clamped()):
        assert kl(jnp.array(logp), jnp.array(logp)) == 0
        assert kl(jnp.array(logp), jnp.array(ref)) >= 0
        if abs(logp - ref) > 1e-3:
            assert kl(jnp.array(logp), jnp.array(ref)) > 0


class JitEqualsEager(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(
        ("absolute", absolute),
        ("straight", StraightThrough()),
        ("clamped", Clamped()),
        ("weighted", RatioWeighted(kl=Clamped())),
    )
    def test_all(self, kl):
        logp, ref = jnp.linspace(-4.0, 0.0, 9), jnp.full(9, -1.5)
        named = {"log_ratio": logp + 2.0} if asks(kl) else {}
        pairs = [(float(x), -1.5) for x in logp]
        if kl is absolute:
            expected = [oracle.absolute(*pair) for pair in pairs]
        else:
            expected = [oracle.clamped_k3(*pair) for pair in pairs]
        if named:
            expected = np.exp(np.float64(named["log_ratio"])) * expected
        chex.assert_trees_all_close(self.variant(kl)(logp, ref, **named), np.float32(expected), rtol=1e-4, atol=1e-6)


def test_what_is_no_estimator_is_refused():
    with pytest.raises(TypeError, match="value must be an estimator on drawn tokens, got 3"):
        StraightThrough(value=3)
    with pytest.raises(ValueError, match=r"value=FullVocabulary\(.*\) asks for divergence, but only log-probabilities"):
        StraightThrough(value=exact)
    with pytest.raises(ValueError, match=r"kl=RatioWeighted\(kl=k3\) asks for log_ratio"):
        ImportanceWeighted(kl=RatioWeighted())
    with pytest.raises(ValueError, match=r"gradient=RatioWeighted\(kl=k3\) asks for log_ratio"):
        StraightThrough(gradient=RatioWeighted())
    with pytest.raises(ValueError, match=r"kl=RatioWeighted\(kl=k3\) asks for log_ratio"):
        RatioWeighted(kl=RatioWeighted())
    with pytest.raises(ValueError, match=r"kl=RatioWeighted\(kl=k3\) asks for log_ratio"):
        Clamped(kl=RatioWeighted())


@pytest.mark.parametrize("name", ["log_ratio", "value"])
@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_bounds_are_refused(name, bound):
    with pytest.raises(ValueError, match=f"{name} must be a finite number > 0, got {bound}"):
        Clamped(**{name: bound})


@pytest.mark.parametrize("kl", [absolute, StraightThrough(), Clamped()])
def test_unequal_shapes_are_refused(kl):
    with pytest.raises(ValueError, match=r"ref_logp has shape \(3,\), but logp has shape \(2, 3\)"):
        kl(jnp.zeros((2, 3)), jnp.zeros(3))


def test_an_unequal_log_ratio_is_refused():
    with pytest.raises(ValueError, match=r"log_ratio has shape \(3,\), but logp has shape \(2, 3\)"):
        RatioWeighted()(jnp.zeros((2, 3)), jnp.zeros((2, 3)), log_ratio=jnp.zeros(3))
    with pytest.raises(ValueError, match=r"importance_log_ratio has shape \(3,\), but logp has shape \(2, 3\)"):
        ImportanceWeighted()(jnp.zeros((2, 3)), jnp.zeros((2, 3)), importance_log_ratio=jnp.zeros(3))


def test_values_hash_compare_and_print():
    assert hash(Clamped(kl=k2)) == hash(Clamped(kl=k2))
    assert StraightThrough() == StraightThrough(value=k3, gradient=k2) != StraightThrough(value=k1)
    assert repr(StraightThrough()) == "StraightThrough(value=k3, gradient=k2)"
    assert repr(RatioWeighted(kl=Clamped())) == "RatioWeighted(kl=Clamped(kl=k3, log_ratio=20.0, value=10.0))"
    assert asks(RatioWeighted()) == ("log_ratio",)
    assert asks(ImportanceWeighted()) == ("importance_log_ratio",)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.core.control import AdaptiveEntropy, AdaptiveKl, initial_value, mixed_reference
from grpo_jax.testing import oracle

KL = AdaptiveKl(initial=0.2, target=6.0, horizon=1000.0)
ENTROPY = AdaptiveEntropy(target=0.2, step=0.005, highest=0.02)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (60.0, 0.2 * (1 + 0.2 * 0.1)),
        (7.2, 0.2 * (1 + 0.2 * 0.1)),
        (6.6, 0.2 * (1 + 0.1 * 0.1)),
        (6.0, 0.2),
        (5.4, 0.2 * (1 - 0.1 * 0.1)),
        (0.0, 0.2 * (1 - 0.2 * 0.1)),
    ],
)
def test_the_kl_coefficient_by_hand(kl, expected):
    """100 completions with a horizon of 1000 move it by a tenth of the relative error, of which 0.2 counts at most."""
    np.testing.assert_allclose(KL.update(jnp.array(0.2), jnp.array(kl), 100), expected, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 2, width=32), st.floats(-1, 50, width=32), st.integers(1, 500))
def test_the_kl_coefficient_equals_the_oracle(coef, kl, samples):
    expected = oracle.adaptive_kl(coef, kl, samples, target=6.0, horizon=1000.0)
    np.testing.assert_allclose(KL.update(jnp.array(coef), jnp.array(kl), samples), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("coef", "entropy", "expected"),
    [
        (0.01, 0.1, 0.015),
        (0.01, 0.2, 0.005),
        (0.01, 0.3, 0.005),
        (0.003, 0.3, 0.0),
        (0.018, 0.1, 0.02),
    ],
)
def test_the_entropy_coefficient_by_hand(coef, entropy, expected):
    np.testing.assert_allclose(ENTROPY.update(jnp.array(coef), jnp.array(entropy)), expected, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 0.015625, width=32), st.floats(0, 1, width=32))
def test_the_entropy_coefficient_equals_the_oracle(coef, entropy):
    expected = oracle.adaptive_entropy(coef, entropy, target=0.2, step=0.005, highest=0.02)
    np.testing.assert_allclose(ENTROPY.update(jnp.array(coef), jnp.array(entropy)), expected, rtol=1e-5, atol=1e-8)


def test_the_entropy_bonus_is_off_above_its_target():
    """Skywork-OR1: alpha = c where the entropy is at most the target, and 0 elsewhere."""
    coefs = [ENTROPY.effective(jnp.array(0.25), jnp.array(h, jnp.float32)) for h in (0.1, 0.2, 0.21)]
    np.testing.assert_array_equal(coefs, [0.25, 0.25, 0.0])


def test_the_entropy_settles_around_its_target():
    """With an entropy that follows the coefficient, H = 10 c, the target 0.2 is met at c = 0.02, within two steps."""
    control = AdaptiveEntropy(target=0.2, step=0.002, highest=1.0)
    coef, seen = jnp.array(0.0), []
    for _ in range(40):
        coef = control.update(coef, 10.0 * coef)
        seen.append(float(coef))
    assert 0.016 - 1e-6 <= min(seen[-20:]) <= max(seen[-20:]) <= 0.024 + 1e-6


def test_a_coefficient_keeps_one_type_from_step_to_step():
    """A weakly typed coefficient would make the second step compile again."""
    traces = []

    @jax.jit
    def step(kl_coef, entropy_coef):
        traces.append(1)
        effective = ENTROPY.effective(entropy_coef, 0.1)
        return KL.update(kl_coef, 7.0, 10), ENTROPY.update(entropy_coef, 0.1), effective

    coefs = jnp.asarray(initial_value(KL), jnp.float32), jnp.asarray(initial_value(ENTROPY), jnp.float32)
    eager = KL.update(coefs[0], 7.0, 10)
    for _ in range(3):
        *coefs, effective = step(*coefs)
        assert not any(x.weak_type for x in (*coefs, effective))
    assert len(traces) == 1
    assert not eager.weak_type
    assert not KL.update(0.2, 7.0, 10).weak_type


@pytest.mark.parametrize("mix", [0.25, 0.6, 1.0])
def test_the_reference_moves_towards_the_policy(rng, mix):
    reference, policy = ({"a": rng.normal(size=(2, 3)), "b": [rng.normal(size=4)]} for _ in range(2))
    single = jax.tree.map(jnp.float32, (reference, policy))
    actual = mixed_reference(*single, mix=mix)
    np.testing.assert_allclose(actual["a"], mix * policy["a"] + (1 - mix) * reference["a"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        actual["b"][0], mix * policy["b"][0] + (1 - mix) * reference["b"][0], rtol=1e-5, atol=1e-6
    )
    jitted = jax.jit(lambda r, p: mixed_reference(r, p, mix=mix))(*single)
    np.testing.assert_allclose(jitted["a"], actual["a"], rtol=1e-5, atol=1e-6)


def test_a_mix_of_1_is_the_policy_itself():
    policy = {"w": jnp.array([1e-30, 0.1, -3.0])}
    np.testing.assert_array_equal(mixed_reference({"w": jnp.full(3, 1e30)}, policy, mix=1.0)["w"], policy["w"])


def test_the_reference_keeps_its_dtype_and_is_rounded_once(rng):
    reference = jnp.asarray(rng.normal(size=64), jnp.bfloat16)
    policy = jnp.asarray(rng.normal(size=64), jnp.float32)
    actual = mixed_reference(reference, policy, mix=0.4)
    expected = 0.4 * np.float64(policy) + 0.6 * np.float64(reference)
    np.testing.assert_array_equal(actual, jnp.float32(expected).astype(jnp.bfloat16))
    assert actual.dtype == jnp.bfloat16
    assert mixed_reference(policy, reference, mix=0.4).dtype == jnp.float32


@pytest.mark.parametrize("mix", [0.0, -0.1, 1.1, float("nan")])
def test_a_mix_out_of_range_is_refused(mix):
    with pytest.raises(ValueError, match=f"mix must be a number above 0 and at most 1, got {mix}"):
        mixed_reference({}, {}, mix=mix)


def test_trees_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"policy\['w'\] has shape \(1,\), but reference\['w'\] has shape \(3,\)"):
        mixed_reference({"w": jnp.zeros(3)}, {"w": jnp.zeros(1)}, mix=0.5)
    with pytest.raises(ValueError, match="reference and policy differ in structure"):
        mixed_reference({"w": jnp.zeros(3)}, {"v": jnp.zeros(3)}, mix=0.5)


@pytest.mark.parametrize("name", ["initial", "target", "horizon", "limit"])
def test_bad_kl_controllers_are_refused(name):
    fields = {"initial": 0.2, "target": 6.0} | {name: -1.0}
    with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0.0, got -1.0"):
        AdaptiveKl(**fields)


@pytest.mark.parametrize("name", ["target", "horizon"])
def test_a_kl_controller_does_not_divide_by_0(name):
    with pytest.raises(ValueError, match=f"{name} must be above 0, got 0"):
        AdaptiveKl(**({"initial": 0.2, "target": 6.0} | {name: 0.0}))


@pytest.mark.parametrize("name", ["target", "step", "initial", "highest"])
def test_bad_entropy_controllers_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0.0, got nan"):
        AdaptiveEntropy(**({"target": 0.2} | {name: float("nan")}))


def test_controllers_are_values():
    assert hash(AdaptiveKl(initial=0.1, target=1.0)) == hash(AdaptiveKl(initial=0.1, target=1.0))
    assert AdaptiveEntropy(target=0.2) == AdaptiveEntropy(target=0.2) != AdaptiveEntropy(target=0.3)
    assert initial_value(0.04) == 0.04
    assert initial_value(AdaptiveEntropy(target=0.2, initial=0.01)) == 0.01

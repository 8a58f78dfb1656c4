import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.core import sequence_mean, token_mean
from grpo_jax.testing import oracle
from grpo_jax.types import WeightedSum

MASK = np.array([[True, True, True, False], [False, True, False, False], [False] * 4, [True] * 4])
aggregators = pytest.mark.parametrize("aggregate", [sequence_mean, token_mean])


def padded(rng, filler):
    return np.where(MASK, rng.normal(size=MASK.shape), filler).astype(np.float32)


@aggregators
@pytest.mark.parametrize("filler", [0.0, np.nan, np.inf, -np.inf])
def test_values_equal_the_oracle_whatever_the_padding_holds(rng, aggregate, filler):
    x = padded(rng, filler)
    actual = aggregate(x, MASK)
    total, weight = getattr(oracle, aggregate.__name__)(x, MASK)
    np.testing.assert_allclose(actual.total, total, rtol=1e-6)
    assert actual.weight == weight
    np.testing.assert_allclose(jax.jit(aggregate)(x, MASK).mean(), total / weight, rtol=1e-6)


@aggregators
def test_leading_axes_are_rows(rng, aggregate):
    x = padded(rng, np.nan)
    split = aggregate(x.reshape(2, 2, 4), MASK.reshape(2, 2, 4))
    np.testing.assert_allclose(split.mean(), aggregate(x, MASK).mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [(sequence_mean, MASK / np.array([[3], [1], [1], [4]])), (token_mean, MASK * 1.0)],
)
def test_gradient_of_the_total(rng, aggregate, expected):
    """1/|o_b| on the tokens of row b for the mean over completions, 1 on every token for the mean over tokens."""
    gradient = jax.grad(lambda x: aggregate(x, MASK).total)(padded(rng, np.nan))
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


@aggregators
def test_nothing_scored_is_0_with_a_gradient_of_0(aggregate):
    x, mask = jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool)
    value, gradient = jax.value_and_grad(lambda x: aggregate(x, mask).mean())(x)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0.0)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([sequence_mean, token_mean]), st.sets(st.integers(1, 3)))
def test_cutting_the_rows_does_not_matter(aggregate, cuts):
    x = padded(np.random.default_rng(3), np.nan)
    whole = aggregate(x, MASK)
    pieces = zip(np.split(x, sorted(cuts)), np.split(MASK, sorted(cuts)), strict=True)
    added = sum((aggregate(*piece) for piece in pieces), WeightedSum(0.0, 0.0))
    np.testing.assert_allclose([added.total, added.weight], [whole.total, whole.weight], rtol=1e-5)


def test_long_completions_weigh_more_only_among_tokens():
    x, mask = jnp.array([[0.0] * 4, [1.0] * 4]), jnp.array([[True] * 4, [True, False, False, False]])
    assert sequence_mean(x, mask).mean() == 0.5
    assert token_mean(x, mask).mean() == pytest.approx(0.2)


@aggregators
def test_bfloat16_is_summed_in_float32(aggregate):
    result = aggregate(jnp.ones((1, 1000), jnp.bfloat16), jnp.ones((1, 1000), bool))
    assert result.total.dtype == result.weight.dtype == jnp.float32
    assert result.mean() == 1


@aggregators
def test_bad_masks_are_refused(aggregate):
    with pytest.raises(TypeError, match="mask must be boolean"):
        aggregate(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"mask has shape \(2, 1\), but x has shape \(2, 3\)"):
        aggregate(jnp.zeros((2, 3)), jnp.zeros((2, 1), bool))

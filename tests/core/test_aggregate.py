import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from grpo_jax.core.aggregate import ConstantLength, EveryRow, sequence_mean, sequence_sum, token_mean
from grpo_jax.core.naming import show
from grpo_jax.testing import oracle
from grpo_jax.types import WeightedSum

MASK = np.array([[True, True, True, False], [False, True, False, False], [False] * 4, [True] * 4])
ORACLES = {
    sequence_mean: oracle.sequence_mean,
    token_mean: oracle.token_mean,
    sequence_sum: oracle.sequence_sum,
    ConstantLength(length=7): lambda x, mask: oracle.constant_length(x, mask, length=7),
    EveryRow(): lambda x, mask: oracle.every_row("sequence_mean", x, mask),
    EveryRow(aggregate=sequence_sum): lambda x, mask: oracle.every_row("sequence_sum", x, mask),
    EveryRow(aggregate=ConstantLength(length=7)): lambda x, mask: oracle.every_row(
        "constant_length", x, mask, length=7
    ),
}
aggregators = pytest.mark.parametrize("aggregate", list(ORACLES), ids=show)


def padded(rng, filler):
    return np.where(MASK, rng.normal(size=MASK.shape), filler).astype(np.float32)


@aggregators
@pytest.mark.parametrize("filler", [0.0, np.nan, np.inf, -np.inf])
def test_values_equal_the_oracle_whatever_the_padding_holds(rng, aggregate, filler):
    x = padded(rng, filler)
    actual = aggregate(x, MASK)
    total, weight = ORACLES[aggregate](x, MASK)
    np.testing.assert_allclose(actual.total, total, rtol=1e-6)
    assert actual.weight == weight
    np.testing.assert_allclose(jax.jit(aggregate)(x, MASK).mean(), total / weight, rtol=1e-6)


@aggregators
def test_leading_axes_are_rows(rng, aggregate):
    x = padded(rng, np.nan)
    split = aggregate(x.reshape(2, 2, 4), MASK.reshape(2, 2, 4))
    np.testing.assert_allclose(split.mean(), aggregate(x, MASK).mean(), rtol=1e-6)


@aggregators
def test_gradient_of_the_total(rng, aggregate):
    """1/|o_b| on the tokens of row b for the mean over completions, 1 on every token for all that sum."""
    means = aggregate in (sequence_mean, EveryRow())
    expected = MASK / np.array([[3], [1], [1], [4]]) if means else MASK * 1.0
    gradient = jax.grad(lambda x: aggregate(x, MASK).total)(padded(rng, np.nan))
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


@aggregators
def test_nothing_scored_is_0_with_a_gradient_of_0(aggregate):
    x, mask = jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool)
    value, gradient = jax.value_and_grad(lambda x: aggregate(x, mask).mean())(x)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0.0)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(ORACLES)), st.sets(st.integers(1, 3)))
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
    assert sequence_sum(x, mask).mean() == 0.5
    assert ConstantLength(length=4)(x, mask).mean() == 0.125


@pytest.mark.parametrize(
    ("aggregate", "without", "within"),
    [(sequence_mean, 2.0, 1.0), (sequence_sum, 4.0, 2.0), (ConstantLength(length=8), 0.5, 0.25)],
    ids=show,
)
def test_an_empty_row_counts_only_inside_every_row(aggregate, without, within):
    x, mask = jnp.array([[1.0, 3.0], [jnp.nan, jnp.nan]]), jnp.array([[True, True], [False, False]])
    assert aggregate(x, mask).mean() == aggregate(x[:1], mask[:1]).mean() == without
    assert EveryRow(aggregate=aggregate)(x, mask).mean() == within
    assert EveryRow(aggregate=aggregate)(x[:1], mask[:1]).mean() == without


def test_every_row_gives_an_empty_row_one_token_that_holds_0():
    """Seen with an aggregator that hands back what it is given: scored tokens, weighted by their place."""

    def places(x, mask):
        return WeightedSum(jnp.sum(x), jnp.sum(jnp.where(mask, jnp.array([1.0, 10.0]), 0.0)))

    x, mask = (
        jnp.array([[1.0, 3.0], [jnp.nan, jnp.nan], [jnp.nan, 5.0]]),
        jnp.array([[True] * 2, [False] * 2, [False, True]]),
    )
    result = EveryRow(aggregate=places)(x, mask)
    assert (result.total, result.weight) == (9.0, 11.0 + 1.0 + 10.0)


@aggregators
def test_padding_a_row_changes_nothing(rng, aggregate):
    x, wide = padded(rng, np.nan), ((0, 0), (0, 3))
    plain, wider = aggregate(x, MASK), aggregate(np.pad(x, wide, constant_values=np.inf), np.pad(MASK, wide))
    np.testing.assert_allclose([wider.total, wider.weight], [plain.total, plain.weight], rtol=1e-6)


@aggregators
def test_rows_may_be_permuted(rng, aggregate):
    x, order = padded(rng, np.nan), rng.permutation(4)
    np.testing.assert_allclose(aggregate(x[order], MASK[order]).mean(), aggregate(x, MASK).mean(), rtol=1e-6)


def test_gradients_are_numerical_in_float64(float64, rng):
    x = jnp.asarray(rng.normal(size=MASK.shape))
    for aggregate in ORACLES:
        check_grads(lambda x, f=aggregate: f(x**2, MASK).mean(), (x,), order=1, modes=["rev"])


def test_completions_of_one_length_make_the_constant_length_the_mean():
    """Dr. GRPO, arXiv:2503.20783: the length only matters where completions differ in it."""
    x, mask = jnp.arange(12.0).reshape(3, 4), jnp.ones((3, 4), bool)
    values = [f(x, mask).mean() for f in (ConstantLength(length=4), sequence_mean, token_mean)]
    np.testing.assert_array_equal(values, 5.5)


@pytest.mark.parametrize("length", [0, -1, float("nan"), float("inf")])
def test_a_length_must_be_above_0(length):
    with pytest.raises(ValueError, match=f"length must be a finite number > 0, got {length}"):
        ConstantLength(length=length)


def test_every_row_refuses_the_mean_over_tokens():
    with pytest.raises(ValueError, match="aggregate=token_mean counts tokens, not rows"):
        EveryRow(aggregate=token_mean)


def test_values_hash_compare_and_print():
    assert hash(ConstantLength(length=3)) == hash(ConstantLength(length=3))
    assert EveryRow() == EveryRow(aggregate=sequence_mean) != EveryRow(aggregate=sequence_sum)
    assert repr(EveryRow(aggregate=ConstantLength(length=3))) == "EveryRow(aggregate=ConstantLength(length=3))"
    assert repr(EveryRow()) == "EveryRow(aggregate=sequence_mean)"


@aggregators
def test_bfloat16_is_summed_in_float32(aggregate):
    result = aggregate(jnp.ones((1, 1000), jnp.bfloat16), jnp.ones((1, 1000), bool))
    assert result.total.dtype == result.weight.dtype == jnp.float32
    assert result.total == (1 if aggregate in (sequence_mean, EveryRow()) else 1000)


@aggregators
def test_bad_masks_are_refused(aggregate):
    with pytest.raises(TypeError, match="mask must be boolean"):
        aggregate(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"mask has shape \(2, 1\), but x has shape \(2, 3\)"):
        aggregate(jnp.zeros((2, 3)), jnp.zeros((2, 1), bool))

"""One draw per row: which token, and how likely it was."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core.naming import show
from grpo_jax.rollout import Sampler
from grpo_jax.rollout.sampler import inverse_cdf
from tests.rollout.small import quick_jit

VOCABULARIES = [1, 2, 3, 4, 5, 8, 13, 16, 23, 32, 33, 100, 255, 256, 257, 1000]
EDGES = np.array([0.0, np.nextafter(np.float32(1), np.float32(0))], np.float32)

invert = quick_jit(inverse_cdf)
draw = quick_jit(lambda sampler, logits, uniform: sampler(logits, uniform), static_argnums=0)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def repeat(logits, count):
    return jnp.asarray(np.broadcast_to(np.asarray(logits, np.float32), (count, len(logits))))


def grid(count):
    """Uniforms in the middle of `count` equal pieces of [0, 1)."""
    return ((np.arange(count) + 0.5) / count).astype(np.float32)


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_the_draw_inverts_the_cumulative_distribution(vocab):
    rng = np.random.default_rng(vocab)
    rows, each = 8, 512
    logits = (3 * rng.normal(size=(rows, vocab))).astype(np.float32)
    uniform = rng.random((rows, each), dtype=np.float32)
    token, logp = (np.asarray(x) for x in invert(np.repeat(logits[:, None], each, 1), uniform))
    logp_V = log_softmax(logits)
    cumulative = np.cumsum(np.exp(logp_V), -1)
    expected = np.stack([np.searchsorted(c, u, side="right") for c, u in zip(cumulative, uniform, strict=True)])
    # In float32 the distribution's steps lie within 2e-6 of where they are in float64; elsewhere the draw is certain.
    clear = np.abs(cumulative[:, None] - uniform[..., None]).min(-1) > 2e-6
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(token[clear], expected[clear])
    np.testing.assert_allclose(logp, np.take_along_axis(logp_V, token, -1), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_a_uniform_at_a_step_draws_the_next_token(vocab):
    """Equal weights and uniforms in binary fractions leave nothing to rounding: the token is floor(u V)."""
    uniform = np.arange(1024, dtype=np.float32) / 1024
    token, logp = invert(repeat(np.zeros(vocab), 1024), uniform)
    np.testing.assert_array_equal(token, np.floor(uniform * vocab))
    np.testing.assert_allclose(logp, -np.log(vocab), rtol=1e-6, atol=0)


@pytest.mark.parametrize("impossible", [-1e30, -np.inf])
@pytest.mark.parametrize("vocab", [2, 5, 16, 23, 257])
def test_a_token_without_probability_is_never_drawn(vocab, impossible):
    rng = np.random.default_rng(vocab)
    uniform = np.concatenate([EDGES, rng.random(62, dtype=np.float32)])
    for live in (1, vocab // 2, vocab - 1):
        logits = np.full((64, vocab), impossible, np.float32)
        for row in logits:
            kept = rng.choice(vocab, max(live, 1), replace=False)
            row[kept] = rng.normal(size=len(kept))
        # Every row meets the smallest uniform, the largest and some between.
        for shift in range(4):
            token, logp = (np.asarray(x) for x in invert(logits, np.roll(uniform, shift)))
            assert (np.take_along_axis(logits, token[:, None], 1) > -1e3).all()
            assert np.isfinite(logp).all()


@pytest.mark.parametrize("vocab", [23, 257, 1000])
def test_a_uniform_next_to_a_step_draws_no_token_without_probability(vocab):
    """Where rounding decides which side of a step a number lies on, and the tokens beside the step are impossible."""
    rng = np.random.default_rng(vocab)
    logits = np.where(rng.random(vocab) < 0.2, 3 * rng.normal(size=vocab), -1e30).astype(np.float32)
    step = np.cumsum(np.exp(log_softmax(logits)))[:-1].astype(np.float32)
    ulp = np.spacing(step)
    uniform = np.clip(np.concatenate([step + k * ulp for k in range(-3, 4)]), *EDGES)
    token, _ = invert(repeat(logits, len(uniform)), uniform)
    assert (logits[token] > -1e3).all()


@pytest.mark.parametrize("vocab", [2, 5, 16, 23])
def test_the_only_possible_token_is_drawn_with_probability_one(vocab):
    logits = np.where(np.eye(vocab, dtype=bool), np.float32(0.7), np.float32(-1e30))
    for uniform in (*EDGES, 0.5):
        token, logp = invert(logits, np.full(vocab, uniform, np.float32))
        np.testing.assert_array_equal(token, np.arange(vocab))
        np.testing.assert_array_equal(logp, 0.0)


def test_the_ends_of_the_unit_interval_draw_the_first_and_the_last_possible_token():
    logits = np.array([-1e30, 0.3, 2.0, -1.0, -1e30, 0.0, -1e30], np.float32)
    token, _ = invert(repeat(logits, 2), EDGES)
    assert token.tolist() == [1, 5]


def test_frequencies_are_the_probabilities():
    """Chi-square of n independent draws: mean V - 1, deviation sqrt(2 (V - 1)); five deviations are allowed."""
    vocab, count = 23, 100_000
    rng = np.random.default_rng(0)
    logits = rng.normal(size=vocab)
    token, _ = invert(repeat(logits, count), rng.random(count, dtype=np.float32))
    expected = count * np.exp(log_softmax(logits))
    assert expected.min() > 100
    statistic = ((np.bincount(token, minlength=vocab) - expected) ** 2 / expected).sum()
    assert statistic < vocab - 1 + 5 * np.sqrt(2 * (vocab - 1))


@pytest.mark.parametrize("vocab", [2, 23, 100])
def test_evenly_spaced_uniforms_hit_every_token_in_proportion(vocab):
    """Of n uniforms at distance 1/n, between n p - 1 and n p + 1 fall on a token of probability p."""
    count = 1 << 14
    logits = np.random.default_rng(vocab).normal(size=vocab)
    token, _ = invert(repeat(logits, count), grid(count))
    error = np.bincount(token, minlength=vocab) - count * np.exp(log_softmax(logits))
    assert np.abs(error).max() <= 1 + count * 2e-6


@pytest.mark.parametrize("temperature", [0.25, 0.7, 1.0, 3.0])
def test_temperature_divides_the_logits(temperature):
    logits = np.random.default_rng(0).normal(size=23).astype(np.float32)
    sampler = Sampler(temperature=temperature)
    token, logp = (np.asarray(x) for x in draw(sampler, repeat(logits, 4096), grid(4096)))
    logp_V = log_softmax(np.float64(logits) / temperature)
    np.testing.assert_allclose(logp, logp_V[token], atol=2e-6)
    error = np.bincount(token, minlength=23) - 4096 * np.exp(logp_V)
    assert np.abs(error).max() <= 1 + 4096 * 2e-6
    assert not sampler.filters


def kept_tokens(logits, *, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """The filters as their papers state them, one after the other, each on what the last one left."""
    p = np.exp(log_softmax(np.float64(logits) / temperature))
    kept = sorted(range(len(p)), key=lambda v: -p[v])
    if top_k is not None:
        kept = kept[:top_k]
    if top_p is not None:
        share = np.cumsum(p[kept]) / p[kept].sum()
        kept = kept[: int(np.argmax(share >= top_p)) + 1]
    if min_p is not None:
        kept = [v for v in kept if p[v] >= min_p * p[kept].max()]
    return sorted(kept), np.log(p / p[kept].sum())


FILTERS = [
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 12},
    {"top_k": 50},
    {"top_p": 0.05},
    {"top_p": 0.6},
    {"top_p": 0.93},
    {"min_p": 0.5},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"temperature": 0.6, "top_p": 0.8},
    {"temperature": 1.7, "min_p": 0.2},
    {"top_k": 6, "top_p": 0.7},
    {"top_k": 7, "min_p": 0.15},
    {"top_p": 0.9, "min_p": 0.15},
    {"temperature": 0.8, "top_k": 9, "top_p": 0.95, "min_p": 0.1},
]


@pytest.mark.parametrize("filters", FILTERS, ids=show)
def test_a_filter_keeps_what_its_definition_keeps_and_renormalises(filters):
    sampler = Sampler(**filters)
    assert sampler.filters
    for seed in range(3):
        logits = np.random.default_rng(seed).normal(size=12).astype(np.float32)
        kept, logp_V = kept_tokens(logits, **filters)
        assert np.exp(logp_V[kept]).min() > 1 / 2048  # so that the grid meets every token that is kept
        token, logp = (np.asarray(x) for x in draw(sampler, repeat(logits, 4096), grid(4096)))
        assert sorted(set(token.tolist())) == kept
        np.testing.assert_allclose(logp, logp_V[token], atol=2e-6)


def test_a_filter_that_leaves_everything_changes_nothing():
    logits = np.random.default_rng(0).normal(size=(64, 23)).astype(np.float32)
    plain = draw(Sampler(), logits, grid(64))
    for filters in ({"top_k": 23}, {"min_p": 1e-9}):
        for got, expected in zip(draw(Sampler(**filters), logits, grid(64)), plain, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_temperature_zero_takes_the_most_likely_token_with_probability_one():
    logits = np.random.default_rng(0).normal(size=(5, 3, 23)).astype(np.float32)
    for uniform in (*EDGES, 0.5):
        token, logp = draw(Sampler(temperature=0), logits, np.full((5, 3), uniform, np.float32))
        np.testing.assert_array_equal(token, logits.argmax(-1))
        np.testing.assert_array_equal(logp, np.zeros((5, 3)))
        assert (token.dtype, logp.dtype) == (jnp.int32, jnp.float32)


def test_rows_are_drawn_one_by_one_whatever_their_axes():
    rng = np.random.default_rng(0)
    logits, uniform = rng.normal(size=(3, 4, 23)).astype(np.float32), rng.random((3, 4), dtype=np.float32)
    together = draw(Sampler(top_k=9), logits, uniform)
    for p, g in itertools.product(range(3), range(4)):
        token, logp = draw(Sampler(top_k=9), logits[p, g], uniform[p, g])
        assert token == together[0][p, g]
        np.testing.assert_allclose(logp, together[1][p, g], atol=1e-6)
    assert (together[0].dtype, together[1].dtype) == (jnp.int32, jnp.float32)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("temperature", -0.1, r"0 \(greedy\) or a finite number above it"),
        ("temperature", float("nan"), r"0 \(greedy\) or a finite number above it"),
        ("top_k", 2.5, "an integer of at least 1"),
        ("top_k", 0, "an integer of at least 1"),
        ("top_p", 0.0, r"a number in \(0, 1\]"),
        ("top_p", 1.5, r"a number in \(0, 1\]"),
        ("min_p", -0.5, r"a number in \(0, 1\]"),
        ("min_p", 1.01, r"a number in \(0, 1\]"),
    ],
)
def test_an_impossible_setting_is_refused_by_name(field, value, expected):
    with pytest.raises(ValueError, match=f"^{field}: {value}; expected {expected}$"):
        Sampler(**{field: value})

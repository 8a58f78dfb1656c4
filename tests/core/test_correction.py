import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.core.aggregate import token_mean
from grpo_jax.core.correction import (
    Chained,
    OffPolicyMask,
    RejectSequences,
    RejectTokens,
    SequenceBand,
    SequenceTruncated,
    TokenBand,
    TokenTruncated,
)
from grpo_jax.core.kl import RatioWeighted, absolute, exact, k1, k2, k3
from grpo_jax.core.objective import Objective, policy_loss
from grpo_jax.core.slots import asks, fill
from grpo_jax.testing import oracle

MASK = np.array([[True, True, True, False], [False, True, False, True], [False] * 4, [True] * 4])
ALL = [
    TokenTruncated(),
    SequenceTruncated(),
    TokenBand(),
    SequenceBand(),
    RejectTokens(limit=0.2),
    RejectSequences(limit=0.2),
    OffPolicyMask(limit=0.1),
    Chained(corrections=(SequenceTruncated(cap=1.5), RejectTokens(limit=0.3), OffPolicyMask(limit=0.1))),
]
corrections = pytest.mark.parametrize("correction", ALL, ids=lambda c: type(c).__name__)


def drawn(rng, scale=0.7, shape=MASK.shape):
    """Log-probabilities of the sampler, the old and the present policy, and advantages of whole rows."""
    sampler = rng.uniform(-3, 0, shape).astype(np.float32)
    old, logp = (sampler + rng.normal(size=shape).astype(np.float32) * scale for _ in range(2))
    advantage = np.broadcast_to(np.where(np.arange(shape[0]) % 2, 1.0, -1.0)[:, None], shape).astype(np.float32)
    return {"logp": logp, "sampler_logp": sampler, "advantage": advantage}, old


def apply(correction, named, old, mask=MASK):
    return correction(jnp.asarray(old) - named["sampler_logp"], mask, **fill("correction", correction, named))


def expected(correction, named, old, mask=MASK):
    """The weight and what is kept, by the oracle."""
    pair = (old, named["sampler_logp"], mask)
    match correction:
        case TokenTruncated(cap=cap):
            return oracle.truncated(*pair, cap=cap), mask
        case SequenceTruncated(cap=cap):
            return oracle.truncated(*pair, cap=cap, whole_sequence=True), mask
        case TokenBand(low=low, high=high):
            return oracle.banded(*pair, low=low, high=high), mask
        case SequenceBand(low=low, high=high):
            return oracle.banded(*pair, low=low, high=high, whole_sequence=True), mask
        case RejectTokens(estimator=f, limit=limit):
            return np.float64(mask), oracle.rejected(*pair, estimator=f.__name__, limit=limit)
        case RejectSequences(estimator=f, limit=limit):
            return np.float64(mask), oracle.rejected(*pair, estimator=f.__name__, limit=limit, whole_sequence=True)
        case OffPolicyMask(limit=limit):
            weight = oracle.off_policy_mask(named["logp"], named["sampler_logp"], mask, named["advantage"], limit=limit)
            return weight, mask
        case Chained(corrections=parts):
            weights, keeps = zip(*(expected(part, named, old, mask) for part in parts), strict=True)
            return np.prod(weights, axis=0), np.all(keeps, axis=0)


@pytest.mark.parametrize(
    "correction",
    [
        *ALL,
        TokenTruncated(cap=0.8),
        TokenBand(low=0.0, high=1.1),
        SequenceBand(low=0.7, high=1.5),
        *(kind(estimator=f, limit=0.25) for kind in (RejectTokens, RejectSequences) for f in (k1, k2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("scale", [0.1, 0.7, 100.0])
def test_values_equal_the_oracle(rng, correction, scale):
    named, old = drawn(rng, scale)
    weight, keep = apply(correction, named, old)
    wanted_weight, wanted_keep = expected(correction, named, old)
    np.testing.assert_allclose(weight, wanted_weight, rtol=1e-4, atol=1e-30)
    np.testing.assert_array_equal(keep, wanted_keep)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-90, 90, width=32), min_size=3, max_size=3), st.sampled_from([0.25, 1.0, 2.0, 5.0]))
def test_weights_are_bounded_and_never_negative(gap, bound):
    gap, mask = jnp.array([gap]), jnp.ones((1, 3), bool)
    for correction in (TokenTruncated(cap=bound), SequenceTruncated(cap=bound), TokenBand(low=0.1, high=bound)):
        weight, keep = correction(gap, mask)
        assert np.all(weight >= 0)
        assert np.all(weight <= bound * (1 + 1e-6))
        np.testing.assert_array_equal(keep, mask)


@corrections
def test_a_sampler_that_agrees_changes_nothing(rng, correction):
    """log_gap = 0: every ratio is 1 and every divergence 0. The policy is the old one, too."""
    named, _ = drawn(rng)
    named["logp"] = named["sampler_logp"]
    weight, keep = apply(correction, named, named["sampler_logp"])
    np.testing.assert_array_equal(weight, MASK * 1.0)
    np.testing.assert_array_equal(keep, MASK)


def test_bounds_of_the_band_belong_to_it():
    """A float32 above or below the bound, in log space, is outside."""
    low, high = np.float32(math.log(0.5)), np.float32(math.log(5.0))
    up, down = np.float32(np.inf), np.float32(-np.inf)
    gap = np.array(
        [np.nextafter(low, down), low, np.nextafter(low, up), np.nextafter(high, down), high, np.nextafter(high, up)]
    )
    weight, _ = TokenBand(low=0.5, high=5.0)(gap, np.ones(6, bool))
    np.testing.assert_allclose(weight, [0.0, 0.5, 0.5, 5.0, 5.0, 0.0], rtol=1e-6)
    weight, _ = SequenceBand(low=0.5, high=5.0)(gap[:, None], np.ones((6, 1), bool))
    np.testing.assert_allclose(weight[:, 0], [0.0, 0.5, 0.5, 5.0, 5.0, 0.0], rtol=1e-6)


def test_the_truncation_cuts_the_upper_end_only():
    gap = jnp.log(jnp.array([[1e-3, 1.9, 2.1, 1e6]]))
    np.testing.assert_allclose(TokenTruncated(cap=2.0)(gap, gap > -99)[0], [[1e-3, 1.9, 2.0, 2.0]], rtol=1e-5)


def test_a_sequence_is_weighed_by_the_product_of_its_tokens():
    """0.5 * 3 = 1.5 for both tokens; 0.5 * 6 = 3 is cut at 2."""
    gap, mask = jnp.log(jnp.array([[0.5, 3.0, 7.0], [0.5, 6.0, 7.0]])), jnp.array([[True, True, False]] * 2)
    weight, _ = SequenceTruncated(cap=2.0)(gap, mask)
    np.testing.assert_allclose(weight, [[1.5, 1.5, 0.0], [2.0, 2.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(SequenceBand(high=2.5)(gap, mask)[0], [[1.5, 1.5, 0.0], [0.0] * 3], rtol=1e-6)


@pytest.mark.parametrize(("estimator", "sign"), [(k1, -1), (k2, +1), (k3, +1)])
def test_the_direction_is_that_of_samples_from_the_sampler(float64, rng, estimator, sign):
    """What a token is judged by averages, over samples from mu, to KL(mu || pi_old) (k1, k3), by enumeration.

    The limit that lies between the smallest and the largest estimate tells the two directions of k3 apart.
    """
    old, mu = (jax.nn.log_softmax(jnp.asarray(rng.normal(size=6))) for _ in range(2))
    gap = old - mu
    judged = {k1: -gap, k2: gap**2 / 2, k3: jnp.exp(gap) - gap - 1}[estimator]
    if estimator is not k2:
        np.testing.assert_allclose(jnp.sum(jnp.exp(mu) * judged), oracle.kl_divergence(mu, old), rtol=1e-12)
    for limit in np.sort(np.abs(judged))[:-1] * (1 + 1e-9):
        _, keep = RejectTokens(estimator=estimator, limit=float(limit))(gap, jnp.ones(6, bool))
        np.testing.assert_array_equal(keep, np.abs(judged) <= limit)


def test_opposite_differences_cancel_in_the_mean_of_k1_only():
    gap, mask = jnp.array([[1.0, -1.0]]), jnp.ones((1, 2), bool)
    assert RejectSequences(estimator=k1, limit=0.01)(gap, mask)[1].all()
    assert not RejectSequences(estimator=k2, limit=0.01)(gap, mask)[1].any()
    assert not RejectSequences(estimator=k1, limit=0.5)(jnp.array([[1.0, 0.5]]), mask)[1].any()
    assert not RejectSequences(estimator=k1, limit=0.5)(jnp.array([[-1.0, -0.5]]), mask)[1].any()


@pytest.mark.parametrize("gap", [np.nan, np.inf, -np.inf, 500.0])
def test_what_cannot_be_compared_is_rejected(gap):
    gap, mask = jnp.array([[gap, 0.0], [0.0, 0.0]]), jnp.ones((2, 2), bool)
    np.testing.assert_array_equal(RejectTokens(limit=1.0)(gap, mask)[1], [[False, True], [True, True]])
    np.testing.assert_array_equal(RejectSequences(limit=1.0)(gap, mask)[1], [[False, False], [True, True]])


@pytest.mark.parametrize(
    ("advantage", "moved", "weight"),
    [(-1.0, 0.6, 0.0), (-1.0, 0.5, 1.0), (-1.0, -9.0, 1.0), (1.0, 9.0, 1.0), (0.0, 9.0, 1.0)],
)
def test_only_bad_completions_that_moved_away_are_masked(advantage, moved, weight):
    """The mean of log mu - log pi over the two scored tokens is `moved`; the limit is 0.5, itself allowed."""
    mask = jnp.array([[True, True, False]])
    logp = jnp.array([[-1.0 - 2 * moved, -1.0, jnp.nan]])
    named = {"logp": logp, "sampler_logp": jnp.full((1, 3), -1.0), "advantage": jnp.full((1, 3), advantage)}
    actual, keep = OffPolicyMask(limit=0.5)(jnp.full((1, 3), jnp.nan), mask, **named)
    np.testing.assert_array_equal(actual, [[weight, weight, 0.0]])
    np.testing.assert_array_equal(keep, mask)


def test_chained_parts_see_the_original_and_may_be_swapped(rng):
    named, old = drawn(rng)
    parts = (RejectSequences(limit=0.15), SequenceTruncated(cap=2.0), RejectTokens(limit=0.3), OffPolicyMask(limit=0.1))
    weight, keep = apply(Chained(corrections=parts), named, old)
    for order in (parts[::-1], parts[1:] + parts[:1]):
        swapped = apply(Chained(corrections=order), named, old)
        np.testing.assert_allclose(swapped[0], weight, rtol=1e-6)
        np.testing.assert_array_equal(swapped[1], keep)
    one = apply(Chained(corrections=parts[1:2]), named, old)
    np.testing.assert_array_equal(one[0], apply(parts[1], named, old)[0])
    assert 0 < np.sum(keep) < np.sum(MASK)


@corrections
@pytest.mark.parametrize("filler", [np.nan, np.inf, -np.inf])
def test_padding_changes_nothing(rng, correction, filler):
    named, old = drawn(rng)
    weight, keep = apply(correction, named, old)
    dirty = {name: np.where(MASK, x, filler) for name, x in named.items()}
    actual = apply(correction, dirty, np.where(MASK, old, filler))
    np.testing.assert_array_equal(actual[0], weight)
    np.testing.assert_array_equal(actual[1], keep)
    np.testing.assert_array_equal(np.where(MASK, 0.0, weight), 0.0)
    assert not np.any(keep & ~MASK)


@pytest.mark.parametrize("correction", [*ALL[:6]], ids=lambda c: type(c).__name__)
def test_gradient_of_the_loss_is_that_of_what_is_kept_times_its_weight(rng, correction):
    """On policy r = 1: the mean over the n kept tokens of -w_t r_t A_t has the gradient -w_t A_t / n, 0 elsewhere.

    NaN in the padding reaches none of it.
    """
    named, old = drawn(rng)
    named["logp"] = old
    weight, keep = (np.asarray(x) for x in apply(correction, named, old))
    dirty = {name: np.where(MASK, x, np.nan) for name, x in named.items()}

    def loss(logp):
        tokens = dirty | {"logp": logp, "mask": MASK}
        return policy_loss(Objective(correction=correction, aggregate=token_mean), **tokens)[0].mean()

    gradient = jax.grad(loss)(dirty["logp"])
    wanted = np.where(keep, -weight * named["advantage"] / keep.sum(), 0.0)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-8)
    assert np.any(gradient != 0)


@corrections
def test_rows_and_tokens_may_be_permuted(rng, correction):
    named, old = drawn(rng)
    rows, tokens = rng.permutation(4)[:, None], rng.permutation(4)
    weight, keep = apply(correction, named, old)
    moved = {name: x[rows, tokens] for name, x in named.items()}
    actual = apply(correction, moved, old[rows, tokens], MASK[rows, tokens])
    np.testing.assert_allclose(actual[0], weight[rows, tokens], rtol=1e-5)
    np.testing.assert_array_equal(actual[1], keep[rows, tokens])


@corrections
def test_leading_axes_are_rows(rng, correction):
    named, old = drawn(rng)
    weight, keep = apply(correction, named, old)
    split = {name: x.reshape(2, 2, 4) for name, x in named.items()}
    actual = apply(correction, split, old.reshape(2, 2, 4), MASK.reshape(2, 2, 4))
    np.testing.assert_allclose(actual[0].reshape(4, 4), weight, rtol=1e-6)
    np.testing.assert_array_equal(actual[1].reshape(4, 4), keep)


class JitEqualsEager(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*ALL)
    def test_all(self, correction):
        named, old = drawn(np.random.default_rng(1))
        given = {name: jnp.asarray(named[name]) for name in asks(correction)}
        weight, keep = self.variant(correction)(jnp.asarray(old - named["sampler_logp"]), jnp.asarray(MASK), **given)
        wanted_weight, wanted_keep = expected(correction, named, old)
        chex.assert_trees_all_close(weight, np.float32(wanted_weight), rtol=1e-4)
        np.testing.assert_array_equal(keep, wanted_keep)
        assert weight.dtype == jnp.float32


@corrections
def test_bad_masks_are_refused(rng, correction):
    named, old = drawn(rng)
    with pytest.raises(TypeError, match="mask must be boolean"):
        apply(correction, named, old, MASK.astype(np.float32))
    with pytest.raises(ValueError, match=r"mask has shape \(4,\), but log_gap has shape \(4, 4\)"):
        apply(correction, named, old, MASK[0])


@pytest.mark.parametrize("name", ["logp", "sampler_logp", "advantage"])
def test_unequal_shapes_are_refused(rng, name):
    named, old = drawn(rng)
    gap = old - named["sampler_logp"]
    named[name] = named[name][:, :1]
    with pytest.raises(ValueError, match=rf"{name} has shape \(4, 1\), but log_gap has shape \(4, 4\)"):
        OffPolicyMask(limit=0.1)(gap, MASK, **named)


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [TokenTruncated, SequenceTruncated])
def test_bad_caps_are_refused(kind, cap):
    with pytest.raises(ValueError, match=f"cap must be a finite number > 0, got {cap}"):
        kind(cap=cap)


@pytest.mark.parametrize("kind", [TokenBand, SequenceBand])
def test_bad_bands_are_refused(kind):
    with pytest.raises(ValueError, match=r"low must be a finite number >= 0\.0, got -0\.1"):
        kind(low=-0.1)
    for high in (0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"high must be a finite number > low=0\.5, got {high}"):
            kind(low=0.5, high=high)


@pytest.mark.parametrize("kind", [RejectTokens, RejectSequences])
def test_bad_rejections_are_refused(kind):
    with pytest.raises(ValueError, match=r"limit must be a finite number >= 0\.0, got nan"):
        kind(limit=float("nan"))
    with pytest.raises(TypeError, match="estimator must be an estimator on drawn tokens, got 3"):
        kind(limit=0.1, estimator=3)
    with pytest.raises(ValueError, match=r"estimator=FullVocabulary\(.*\) asks for divergence"):
        kind(limit=0.1, estimator=exact)
    with pytest.raises(ValueError, match=r"estimator=RatioWeighted\(kl=k3\) asks for log_ratio"):
        kind(limit=0.1, estimator=RatioWeighted())


def test_other_bad_parameters_are_refused():
    with pytest.raises(ValueError, match=r"limit must be a finite number >= 0\.0, got -1"):
        OffPolicyMask(limit=-1)
    with pytest.raises(ValueError, match="corrections must hold at least one correction"):
        Chained(corrections=())
    with pytest.raises(TypeError, match="corrections must be a tuple, got \\[TokenTruncated"):
        Chained(corrections=[TokenTruncated()])


def test_values_hash_compare_and_print():
    for correction in ALL:
        assert hash(correction) == hash(correction)
    assert TokenBand() == TokenBand(low=0.5, high=5.0) != SequenceBand(low=0.5, high=5.0)
    assert repr(RejectTokens(limit=0.1, estimator=absolute)) == "RejectTokens(limit=0.1, estimator=absolute)"
    one, two = Chained(corrections=(TokenTruncated(),)), Chained(corrections=(TokenTruncated(), len))
    assert repr(one) == "Chained(corrections=(TokenTruncated(cap=2.0),))"
    assert repr(two) == "Chained(corrections=(TokenTruncated(cap=2.0), len))"
    assert one == Chained(corrections=(TokenTruncated(cap=2.0),))
    assert asks(one) == ("logp", "sampler_logp", "advantage")

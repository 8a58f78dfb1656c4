import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from grpo_jax.core.surrogate import ClipCov, KlCov, PpoClip, covariance
from grpo_jax.testing import oracle

MASK = np.random.default_rng(5).random((4, 3, 6)) < 0.7
KEY = jax.random.key(0)


def batch(filler=0.0, seed=0):
    """Returns log-probabilities and advantages [P, G, T] with `filler` at padding."""
    rng = np.random.default_rng(seed)
    both = rng.uniform(-3, 0, MASK.shape), rng.normal(size=MASK.shape) * 3
    return [jnp.asarray(np.where(MASK, x, filler), jnp.float32) for x in both]


def test_covariances_equal_the_oracle():
    logp, advantage = batch()
    expected = oracle.covariances(np.float64(logp)[MASK].tolist(), np.float64(advantage)[MASK].tolist())
    got = covariance(logp, advantage, MASK)
    np.testing.assert_allclose(np.asarray(got)[MASK], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(got)[~MASK], 0.0)
    np.testing.assert_allclose(got.sum() / MASK.sum(), np.cov(logp[MASK], advantage[MASK], bias=True)[0, 1], rtol=1e-4)


def test_a_shift_of_either_changes_no_covariance():
    logp, advantage = batch()
    moved = covariance(logp + 2.0, advantage - 3.0, MASK)
    np.testing.assert_allclose(moved, covariance(logp, advantage, MASK), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("filler", [np.nan, np.inf])
def test_padding_changes_neither_covariances_nor_choices(filler):
    (logp, advantage), filled = batch(), batch(filler)
    chex.assert_trees_all_equal(covariance(*filled, MASK), covariance(logp, advantage, MASK))
    for surrogate, key in ((KlCov(share=0.2), {}), (ClipCov(share=0.2, lowest=0.1), {"key": KEY})):
        plain = surrogate.select(mask=MASK, old_logp=logp, advantage=advantage, **key)
        padded = surrogate.select(mask=MASK, old_logp=filled[0], advantage=filled[1], **key)
        chex.assert_trees_all_equal(padded, plain)
        assert plain.any()
        assert not plain[~MASK].any()


@pytest.mark.parametrize(("share", "count"), [(1e-4, 1), (0.1, 5), (0.5, 25), (1.0, 51)])
def test_kl_cov_takes_the_largest_covariances(share, count):
    """floor(share n) of the 51 scored tokens, and at least one."""
    assert MASK.sum() == 51
    logp, advantage = batch()
    chosen = np.asarray(KlCov(share=share).select(mask=MASK, old_logp=logp, advantage=advantage))
    cov = np.asarray(covariance(logp, advantage, MASK))
    assert chosen.sum() == count
    rest = MASK & ~chosen
    assert not rest.any() or cov[chosen].min() >= cov[rest].max()


def test_clip_cov_draws_from_the_range_and_no_more_than_its_share():
    logp, advantage = batch()
    cov = np.asarray(covariance(logp, advantage, MASK))
    eligible = MASK & (cov >= 0.5) & (cov <= 3.0)
    assert eligible.sum() > 5
    surrogate = ClipCov(share=0.06, lowest=0.5, highest=3.0)
    select = jax.jit(lambda key: surrogate.select(mask=MASK, old_logp=logp, advantage=advantage, key=key))
    draws = np.stack([select(key) for key in jax.random.split(KEY, 200)])
    assert (draws.sum(axis=(1, 2, 3)) == 3).all()
    assert not draws[:, ~eligible].any()
    # Each of the n eligible tokens is drawn with probability 3 / n: within five standard errors of it.
    share = 3 / eligible.sum()
    error = math.sqrt(share * (1 - share) / 200)
    np.testing.assert_allclose(draws[:, eligible].mean(0), share, atol=5 * error)


def test_clip_cov_takes_all_that_are_eligible_where_they_are_few():
    logp, advantage = batch()
    cov = np.asarray(covariance(logp, advantage, MASK))
    highest = np.sort(cov[MASK])[-2:]
    surrogate = ClipCov(share=0.5, lowest=float(highest[0]) - 1e-3, highest=100.0)
    chosen = np.asarray(surrogate.select(mask=MASK, old_logp=logp, advantage=advantage, key=KEY))
    np.testing.assert_array_equal(chosen, MASK & (cov >= highest[0]))
    nothing = ClipCov(lowest=90.0, highest=100.0).select(mask=MASK, old_logp=logp, advantage=advantage, key=KEY)
    assert not nothing.any()


def test_nothing_scored_chooses_nothing():
    logp, advantage = batch(np.nan)
    empty = np.zeros_like(MASK)
    assert not KlCov().select(mask=empty, old_logp=logp, advantage=advantage).any()
    assert not ClipCov(lowest=-9.0).select(mask=empty, old_logp=logp, advantage=advantage, key=KEY).any()


LOG_RATIO = jnp.log(jnp.array([0.5, 0.8, 1.0, 1.2, 2.0]))


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_clip_cov_is_flat_on_the_chosen_and_ppo_elsewhere(advantage):
    """L = 0 on I: value and gradient are exactly 0, even at a ratio that overflows; elsewhere they are PpoClip's."""
    selected = jnp.array([True, False, True, False, True])
    log_ratio = LOG_RATIO.at[4].set(400.0)
    run = lambda s, f, **k: jnp.sum(f(s, s, jnp.full(5, advantage), **k)[0] * jnp.arange(1.0, 6.0))  # noqa: E731
    got = jax.grad(run)(log_ratio, ClipCov(), selected=selected)
    expected = jax.grad(run)(LOG_RATIO, PpoClip())
    np.testing.assert_array_equal(got, jnp.where(selected, 0.0, expected))
    loss, clipped = ClipCov()(log_ratio, log_ratio, jnp.full(5, advantage), selected=selected)
    np.testing.assert_array_equal(loss[selected], 0.0)
    assert clipped[selected].all()


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("coef", [0.0, 0.5])
def test_gradient_of_kl_cov_by_hand(advantage, coef):
    """dL/ds = -r A everywhere, and on I coef sign(log pi - log pi_old) more, which is 0 where both are equal."""
    selected = jnp.array([True, False, True, False, True])
    old_logp = jnp.full(5, -2.0)
    loss = lambda p: KlCov(coef=coef)(  # noqa: E731
        p - old_logp, p, jnp.full(5, advantage), old_logp=old_logp, selected=selected
    )[0].sum()
    logp = old_logp + LOG_RATIO
    expected = -jnp.exp(logp - old_logp) * advantage + coef * jnp.where(selected, jnp.sign(logp - old_logp), 0.0)
    np.testing.assert_allclose(jax.grad(loss)(logp), expected, rtol=1e-6)
    ratios = np.exp(np.float64(LOG_RATIO))
    values = [oracle.kl_cov(r, advantage, bool(i), coef=coef) for r, i in zip(ratios, selected, strict=True)]
    np.testing.assert_allclose(loss(logp), sum(values), rtol=1e-5)


def test_gradients_are_numerical_in_float64(float64):
    old_logp, advantage = jnp.full(5, -2.0), jnp.array([2.0, -1.0, 0.0, -3.0, 1.0])
    logp, selected = old_logp + jnp.array([-0.7, 0.1, 0.3, 0.05, -0.1]), jnp.array([1, 0, 1, 0, 1], bool)
    run = lambda p: KlCov()(p - old_logp, p, advantage, old_logp=old_logp, selected=selected)[0]  # noqa: E731
    check_grads(run, (logp,), order=1, modes=["rev"])
    run = lambda p: ClipCov()(p - old_logp, p, advantage, selected=selected)[0]  # noqa: E731
    check_grads(run, (logp,), order=1, modes=["rev"])


class JitEqualsEager(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_choices(self):
        logp, advantage = batch()
        mask = jnp.asarray(MASK)
        select = self.variant(lambda m, p, a: KlCov(share=0.1).select(mask=m, old_logp=p, advantage=a))
        assert select(mask, logp, advantage).sum() == 5
        draw = self.variant(
            lambda m, p, a, k: ClipCov(share=0.06, lowest=0.5).select(mask=m, old_logp=p, advantage=a, key=k)
        )
        expected = ClipCov(share=0.06, lowest=0.5).select(mask=MASK, old_logp=logp, advantage=advantage, key=KEY)
        chex.assert_trees_all_equal(draw(mask, logp, advantage, KEY), expected)


def test_bad_parameters_and_inputs_are_refused():
    with pytest.raises(ValueError, match="low must be a finite number >= 0"):
        ClipCov(low=-1.0)
    for make in (ClipCov, KlCov):
        for share in (0.0, 1.1, math.nan):
            with pytest.raises(ValueError, match="share must be a number > 0 and <= 1"):
                make(share=share)
    with pytest.raises(ValueError, match=r"lowest=2.0 must be a number <= highest=1.0"):
        ClipCov(lowest=2.0, highest=1.0)
    with pytest.raises(ValueError, match="coef must be a finite number >= 0"):
        KlCov(coef=-1.0)
    zeros = jnp.zeros((2, 3))
    with pytest.raises(TypeError, match="selected must be boolean"):
        ClipCov()(zeros, zeros, zeros, selected=zeros)
    with pytest.raises(ValueError, match=r"old_logp has shape \(3,\), but log_ratio has shape \(2, 3\)"):
        KlCov()(zeros, zeros, zeros, old_logp=jnp.zeros(3), selected=zeros > 0)
    with pytest.raises(TypeError, match="mask must be boolean"):
        covariance(zeros, zeros, zeros)

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from grpo_jax.core.naming import show
from grpo_jax.core.surrogate import CispoCap, EntropySelected, GeometricMean, PpoClip, Sapo, reinforce
from grpo_jax.core.surrogate.selection import largest, portion
from grpo_jax.testing import oracle

MASK = np.random.default_rng(5).random((4, 3, 6)) < 0.7


def entropies(filler=0.0):
    values = np.random.default_rng(1).uniform(0, 3, MASK.shape)
    return jnp.asarray(np.where(MASK, values, filler), jnp.float32)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.8, 1.0])
def test_the_choice_is_that_of_the_quantile(share):
    chosen = EntropySelected(share=share).select(mask=MASK, entropy=entropies())
    expected = oracle.at_or_above_quantile(np.float64(entropies())[MASK], 1 - share)
    np.testing.assert_array_equal(np.asarray(chosen)[MASK], expected)
    assert not np.asarray(chosen)[~MASK].any()


@pytest.mark.parametrize("filler", [np.nan, np.inf, -np.inf])
def test_padding_is_never_chosen_and_changes_no_choice(filler):
    select = EntropySelected(share=0.3).select
    chex.assert_trees_all_equal(select(mask=MASK, entropy=entropies(filler)), select(mask=MASK, entropy=entropies()))


def test_equal_entropies_are_cut_at_the_exact_count():
    mask = jnp.array([[True, True, True, False], [True, True, False, False]])
    chosen = EntropySelected(share=0.5).select(mask=mask, entropy=jnp.ones((2, 4)))
    np.testing.assert_array_equal(chosen, [[True, True, True, False], [False] * 4])


def test_nothing_scored_chooses_nothing():
    assert not EntropySelected().select(mask=np.zeros_like(MASK), entropy=entropies(np.nan)).any()


@pytest.mark.parametrize("surrogate", [PpoClip(high=0.28), Sapo(), reinforce], ids=show)
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_only_the_chosen_carry_loss_and_gradient(surrogate, advantage):
    """L = surrogate on I and 0 elsewhere; the gradient of an unselected token is exactly 0, whatever it holds."""
    selected = jnp.array([True, False, True, False])
    log_ratio = jnp.array([-0.5, 400.0, 0.5, -400.0])
    run = lambda s, f, **k: f(s, s, jnp.full(s.shape, advantage), **k)[0].sum()  # noqa: E731
    value, slope = jax.value_and_grad(run)(log_ratio, EntropySelected(surrogate=surrogate), selected=selected)
    plain, expected = jax.value_and_grad(run)(log_ratio[selected], surrogate)
    np.testing.assert_allclose(value, plain, rtol=1e-6)
    np.testing.assert_allclose(slope[selected], expected, rtol=1e-6)
    np.testing.assert_array_equal(slope[~selected], 0.0)
    clipped = EntropySelected(surrogate=surrogate)(log_ratio, log_ratio, jnp.full(4, advantage), selected=selected)[1]
    assert not clipped[~selected].any()


def test_a_bound_that_acts_at_policy_equality_is_not_reported_of_the_rest():
    """A cap below 1 replaces even the ratio 1, which is what a token that was not chosen is given."""
    zeros, selected = jnp.zeros(2), jnp.array([True, False])
    _, clipped = EntropySelected(surrogate=CispoCap(cap=0.5))(zeros, zeros, jnp.ones(2), selected=selected)
    np.testing.assert_array_equal(clipped, selected)


ASCENDING = [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.7, 0.8, 0.9, 1.0, 1.1, 1.2]]
SHUFFLED = [[0.1, 0.2, 0.3, 1.4, 0.5, 0.14], [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]]


@pytest.mark.parametrize(
    ("entropy", "lengths", "share", "chosen"),
    [
        (ASCENDING, (6, 4), 0.2, [8, 9]),
        (SHUFFLED, (4, 4), 0.2, [3, 9]),
        (ASCENDING, (6, 4), 0.5, [5, 6, 7, 8, 9]),
        (ASCENDING, (6, 4), 1.0, list(range(10))),
        (ASCENDING, (6, 4), 1e-6, [9]),
        (ASCENDING, (0, 0), 0.5, []),
    ],
)
def test_published_choices_of_trl(entropy, lengths, share, chosen):
    """The cases of GetHighEntropyMaskTester in TRL's tests/test_grpo_trainer.py, whose threshold is 1 - share."""
    mask = jnp.arange(6) < jnp.array(lengths)[:, None]
    got = EntropySelected(share=share).select(mask=mask, entropy=jnp.array(entropy))
    np.testing.assert_array_equal(np.flatnonzero(got), chosen)


def test_all_tokens_are_the_surrogate_itself():
    log_ratio, advantage = jnp.linspace(-1, 1, 8), jnp.where(jnp.arange(8) % 2, 1.0, -1.0)
    everyone = EntropySelected(share=1.0).select(mask=jnp.ones(8, bool), entropy=jnp.arange(8.0))
    got = EntropySelected(share=1.0)(log_ratio, log_ratio, advantage, selected=everyone)
    chex.assert_trees_all_equal(got, PpoClip()(log_ratio, log_ratio, advantage))


def test_gradient_is_numerical_in_float64(float64):
    log_ratio, advantage = jnp.array([-0.5, 0.1, 0.5, 2.0]), jnp.array([1.0, -1.0, 2.0, 1.0])
    selected = jnp.array([True, True, False, True])
    run = lambda s: EntropySelected()(s, s, advantage, selected=selected)[0]  # noqa: E731
    check_grads(run, (log_ratio,), order=1, modes=["rev"])


class JitEqualsEager(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_select(self):
        select = self.variant(lambda mask, entropy: EntropySelected(share=0.3).select(mask=mask, entropy=entropy))
        expected = oracle.at_or_above_quantile(np.float64(entropies())[MASK], 0.7)
        np.testing.assert_array_equal(np.asarray(select(MASK, entropies()))[MASK], expected)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=12), st.integers(0, 12))
def test_the_largest_are_exactly_as_many_and_none_left_out_is_larger(entries, count):
    score = jnp.array([s for s, _ in entries], jnp.float32)
    eligible = np.array([e for _, e in entries])
    chosen = np.asarray(largest(score, jnp.asarray(eligible), jnp.array(count)))
    assert chosen.sum() == min(count, eligible.sum())
    assert not (chosen & ~eligible).any()
    if chosen.any() and (eligible & ~chosen).any():
        assert score[chosen].min() >= score[eligible & ~chosen].max()


@pytest.mark.parametrize(("thousandths", "n"), [(290, 3), (290, 100), (9, 3000), (36, 3000), (9, 10**5), (65, 10**6)])
def test_a_portion_is_the_floor_of_the_exact_product(thousandths, n):
    """In float32 0.009 times 3000 is a little below 27."""
    assert portion(thousandths / 1000, jnp.array(n)) == thousandths * n // 1000


def test_bad_parameters_and_inputs_are_refused():
    with pytest.raises(ValueError, match=r"share must be a number > 0 and <= 1, got 0\.0"):
        EntropySelected(share=0.0)
    with pytest.raises(ValueError, match=r"surrogate=GeometricMean\(.*\) asks for mask, which Entropy"):
        EntropySelected(surrogate=GeometricMean())
    zeros = jnp.zeros((2, 3))
    with pytest.raises(TypeError, match="selected must be boolean"):
        EntropySelected()(zeros, zeros, zeros, selected=zeros)
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), but entropy has shape \(2, 3\)"):
        EntropySelected().select(mask=jnp.ones(3, bool), entropy=zeros)
    assert EntropySelected() == EntropySelected(surrogate=PpoClip(), share=0.2)
    assert repr(EntropySelected(surrogate=reinforce)) == "EntropySelected(surrogate=reinforce, share=0.2)"

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from grpo_jax.core import Objective, ppo, verl_ppo
from grpo_jax.core.aggregate import sequence_mean
from grpo_jax.core.value import ClippedValue, explained_variance, value_loss
from grpo_jax.testing import oracle

numbers = st.floats(-4, 4, width=32)


def slope(loss, value, old, returns):
    """Returns dL/dV of one token."""
    return jax.grad(lambda v: loss(v, jnp.float32(old), jnp.float32(returns))[0])(jnp.float32(value))


@pytest.mark.parametrize(
    ("value", "returns", "flat"),
    [
        (0.25, 3.0, False),
        (0.5, 3.0, False),
        (1.0, 3.0, True),
        (4.0, 3.0, True),
        (6.0, 3.0, False),
        (-1.0, 3.0, False),
        (-0.25, -3.0, False),
        (-0.5, -3.0, False),
        (-1.0, -3.0, True),
        (1.0, -3.0, False),
        (0.75, 0.25, False),
        (0.75, 0.5, False),
    ],
)
def test_gradient_inside_at_and_beyond_the_clip(value, returns, flat):
    """V_old = 0, clip = 0.5. L = max((V - R)^2, (clip(V) - R)^2)/2: V - R where the first is larger, or both equal.

    Beyond the clip on the side of R the clipped error is larger, and constant: the critic has moved far enough.
    On the other side, or far past R (|V - R| > |clip(V) - R|), the free error is larger and pulls V back.
    """
    actual = slope(ClippedValue(clip=0.5), value, 0.0, returns)
    np.testing.assert_array_equal(actual, 0.0 if flat else value - returns)


def test_the_old_value_is_the_middle_of_the_clip():
    """Around V_old = 2: V = 2.75 is held at 2.5, V = 2.25 is not, and with R = 5 the errors are 2.5 and 2.75."""
    loss, clipped = ClippedValue(clip=0.5)(jnp.array([2.75, 2.25]), jnp.full(2, 2.0), jnp.full(2, 5.0))
    np.testing.assert_array_equal(loss, [2.5**2 / 2, 2.75**2 / 2])
    np.testing.assert_array_equal(clipped, [True, False])


@settings(max_examples=60, deadline=None)
@given(numbers, numbers, numbers, st.sampled_from([None, 0.0, 0.2, 3.0]))
def test_values_equal_the_oracle(value, old, returns, clip):
    loss, clipped = ClippedValue(clip=clip)(*map(jnp.array, ([value], [old], [returns])))
    expected = oracle.clipped_value(value, old, returns, clip=clip)
    np.testing.assert_allclose(loss, [expected], rtol=1e-5, atol=1e-6)
    if expected > (value - returns) ** 2 / 2 + 1e-4:
        assert clipped[0]
    if abs(value - old) <= (np.inf if clip is None else clip):
        assert not clipped[0]


@settings(max_examples=30, deadline=None)
@given(numbers, numbers, numbers, st.integers(-4, 4))
def test_laws(value, old, returns, offset):
    """Never below the plain error; the same after a shift of all three; symmetric in sign; wide clips do nothing."""
    value, old, returns = (jnp.round(jnp.float32(x) * 64) / 64 for x in (value, old, returns))
    clip = ClippedValue(clip=0.25)
    loss, _ = clip(value, old, returns)
    plain, never = ClippedValue(clip=None)(value, old, returns)
    assert loss >= plain
    assert not never
    np.testing.assert_array_equal(clip(value + offset, old + offset, returns + offset)[0], loss)
    np.testing.assert_array_equal(clip(-value, -old, -returns)[0], loss)
    np.testing.assert_array_equal(ClippedValue(clip=100.0)(value, old, returns)[0], plain)


def test_without_a_clip_it_is_the_squared_error(rng):
    value, old, returns = rng.normal(size=(3, 4)).astype(np.float32)
    loss, clipped = ClippedValue(clip=None)(value, old * np.nan, returns)
    np.testing.assert_allclose(loss, (value - returns) ** 2 / 2, rtol=1e-6)
    np.testing.assert_array_equal(clipped, False)
    np.testing.assert_array_equal(slope(ClippedValue(clip=None), 3.0, 0.0, 1.0), 2.0)


def test_bfloat16_is_computed_in_float32():
    value, old, returns = jnp.array([1.0], jnp.bfloat16), jnp.array([1.0], jnp.bfloat16), jnp.array([1.0078125])
    for clip in (None, 0.2):
        loss, _ = ClippedValue(clip=clip)(value, old, returns)
        assert loss.dtype == jnp.float32
        np.testing.assert_allclose(loss, 0.0078125**2 / 2, rtol=1e-6)


def test_gradients_are_numerical_in_float64(float64):
    """Away from the corners: inside, held, pulled back, and on the other side."""
    value, old, returns = jnp.array([0.1, 1.0, 6.0, -1.0]), jnp.zeros(4), jnp.full(4, 2.0)
    for clip in (0.5, None):
        check_grads(lambda v, c=clip: ClippedValue(clip=c)(v, old, returns)[0], (value,), order=1, modes=["rev"])


def test_explained_variance_equals_the_oracle(rng):
    for scale, offset in [(1.0, 0.0), (1e-3, 0.0), (1.0, 100.0)]:
        mask = rng.random((4, 6)) < 0.7
        value, returns = scale * rng.normal(size=(2, 4, 6)) + offset
        value, returns = (np.where(mask, x, np.nan).astype(np.float32) for x in (value, returns))
        expected = oracle.explained_variance(value, returns, mask)
        np.testing.assert_allclose(explained_variance(value, returns, mask), expected, rtol=1e-4, atol=1e-5)


def test_what_is_explained():
    """All by a critic that is right up to an offset, nothing by a constant, and less than nothing by the opposite."""
    returns, mask = jnp.array([1.0, 2.0, 3.0, 6.0]), jnp.ones(4, bool)
    np.testing.assert_allclose(explained_variance(returns + 7.0, returns, mask), 1.0, rtol=1e-6)
    np.testing.assert_allclose(explained_variance(jnp.full(4, 5.0), returns, mask), 0.0, atol=1e-6)
    np.testing.assert_allclose(explained_variance(-returns, returns, mask), -3.0, rtol=1e-6)
    np.testing.assert_allclose(explained_variance(2 * returns, 2 * returns + 1, mask), 1.0, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])
def test_returns_without_variance_give_exactly_0(value, rng):
    """The mean of seven times 0.1 is not 0.1 in float32: its rounding is no variance to explain."""
    returns, mask = jnp.full(7, value, jnp.float32), jnp.ones(7, bool)
    guess = jnp.asarray(rng.normal(size=7), jnp.float32)
    np.testing.assert_array_equal(explained_variance(guess, returns, mask), 0.0)
    np.testing.assert_array_equal(explained_variance(guess, returns, jnp.zeros(7, bool)), 0.0)


class JitEqualsEager(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(None, 0.2)
    def test_both(self, clip):
        value, old, returns = np.random.default_rng(5).normal(size=(3, 4, 6)).astype(np.float32)
        loss, _ = self.variant(ClippedValue(clip=clip))(value, old, returns)
        rows = zip(value.ravel(), old.ravel(), returns.ravel(), strict=True)
        expected = np.array([oracle.clipped_value(*map(float, row), clip=clip) for row in rows]).reshape(4, 6)
        np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
        mask = value > -1
        actual = self.variant(explained_variance)(value, returns, mask)
        np.testing.assert_allclose(actual, oracle.explained_variance(value, returns, mask), rtol=1e-5)


def test_values_hash_compare_and_print():
    assert ClippedValue(clip=0.2) == ClippedValue()
    assert hash(ClippedValue(clip=None)) == hash(ClippedValue(clip=None))
    assert repr(ClippedValue(clip=0.5)) == "ClippedValue(clip=0.5)"


def test_bad_input_is_refused():
    for clip in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=r"clip must be a finite number >= 0.0"):
            ClippedValue(clip=clip)
    tokens = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"old_value has shape \(3,\), but value has shape \(2, 3\)"):
        ClippedValue()(tokens, tokens[0], tokens)
    with pytest.raises(ValueError, match=r"returns has shape \(2, 1\), but value has shape \(2, 3\)"):
        ClippedValue()(tokens, tokens, tokens[:, :1])
    with pytest.raises(TypeError, match="mask must be boolean"):
        explained_variance(tokens, tokens, tokens)
    with pytest.raises(ValueError, match=r"returns has shape \(3,\), but value has shape \(2, 3\)"):
        explained_variance(tokens, tokens[0], tokens > 0)


MASK = np.array([[True, True, False], [True, False, True], [False, False, False]])


def critic_batch(filler=np.nan, seed=0):
    rng = np.random.default_rng(seed)
    batch = {name: rng.normal(size=MASK.shape) for name in ("value", "old_value", "returns")}
    return {name: jnp.asarray(np.where(MASK, x, filler), jnp.float32) for name, x in batch.items()}


@pytest.mark.parametrize("objective", [ppo(), verl_ppo(), dataclasses.replace(ppo(), aggregate=sequence_mean)])
def test_the_loss_of_a_critic_equals_the_oracle_whatever_the_padding_holds(objective):
    batch = critic_batch()
    loss, metrics = value_loss(objective, mask=MASK, **batch)
    each = np.zeros(MASK.shape)
    for b, t in zip(*np.nonzero(MASK), strict=True):
        each[b, t] = oracle.clipped_value(*(float(batch[name][b, t]) for name in batch), clip=objective.value.clip)
    total, weight = getattr(oracle, objective.aggregate.__name__)(each, MASK)
    np.testing.assert_allclose(loss.total, total, rtol=1e-5)
    assert loss.weight == weight
    chex.assert_trees_all_equal(metrics["value_loss"], loss)
    np.testing.assert_allclose(metrics["value"].mean(), np.asarray(batch["value"])[MASK].mean(), rtol=1e-5)
    held = objective.value(*(np.where(MASK, x, 0.0) for x in batch.values()))[1]
    assert metrics["value_clip_fraction"].total == held[MASK].sum()
    assert metrics["value_clip_fraction"].weight == MASK.sum()
    chex.assert_trees_all_equal(value_loss(objective, mask=MASK, **critic_batch(filler=0.0))[0], loss)


def test_the_gradient_of_a_critic_reaches_its_value_alone():
    """V - R on a scored token that the clip leaves free, over the number of tokens; 0 on the old value and returns."""
    batch = critic_batch()
    objective = dataclasses.replace(ppo(), value=ClippedValue(clip=None))
    slopes = jax.grad(lambda batch: value_loss(objective, mask=MASK, **batch)[0].mean())(batch)
    expected = np.where(MASK, (batch["value"] - batch["returns"]) / MASK.sum(), 0.0)
    np.testing.assert_allclose(slopes["value"], expected, rtol=1e-6)
    np.testing.assert_array_equal(slopes["old_value"], 0.0)
    np.testing.assert_array_equal(slopes["returns"], 0.0)
    metrics = jax.grad(lambda batch: sum(m.total for m in value_loss(objective, mask=MASK, **batch)[1].values()))(batch)
    chex.assert_trees_all_equal(metrics, jax.tree.map(jnp.zeros_like, batch))


def test_micro_batches_of_a_critic_add_up():
    batch = critic_batch()
    whole = value_loss(ppo(), mask=MASK, **batch)
    parts = [value_loss(ppo(), mask=MASK[b : b + 1], **{k: x[b : b + 1] for k, x in batch.items()}) for b in range(3)]
    chex.assert_trees_all_close(jax.tree.map(lambda *x: sum(x), *parts), whole, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mask": np.ones(MASK.shape)}, TypeError, "mask must be boolean"),
        ({"mask": MASK[0]}, ValueError, r"mask has shape \(3,\), but value has shape \(3, 3\)"),
        ({"returns": jnp.zeros(3)}, ValueError, r"returns has shape \(3,\), but value has shape \(3, 3\)"),
        ({"old_value": jnp.zeros(3)}, ValueError, r"old_value has shape \(3,\), but value has shape \(3, 3\)"),
        ({"objective": Objective()}, ValueError, r"value=None: this objective has no loss for a critic"),
    ],
)
def test_bad_inputs_of_a_critic_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        value_loss(**{"objective": ppo(), "mask": MASK, **critic_batch(), **change})


def test_what_a_critics_loss_reads_is_0_outside_the_mask():
    seen = []

    def absolute_error(value, old_value, returns):
        seen.extend([value, old_value, returns])
        return jnp.abs(value - returns), jnp.zeros(value.shape, bool)

    value_loss(dataclasses.replace(ppo(), value=absolute_error), mask=MASK, **critic_batch())
    assert len(seen) == 3
    for x, raw in zip(seen, critic_batch().values(), strict=True):
        np.testing.assert_array_equal(x, np.where(MASK, raw, 0.0))

"""What holds for every advantage."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from grpo_jax.core import advantage
from grpo_jax.core.advantage import (
    BatchScaled,
    Gae,
    GroupBaselineWhitened,
    GroupNormalised,
    PassAtK,
    ProcessNormalised,
    ReinforcePlusPlus,
    TermNormalised,
    centred,
    greedy_baseline,
    leave_one_out,
    length_weighted,
    mean_scaled,
    zero_variance_rescaled,
)
from grpo_jax.core.naming import show
from grpo_jax.core.slots import asks

EVERY = [
    BatchScaled(),
    Gae(gamma=0.9, lam=0.8),
    GroupBaselineWhitened(),
    GroupNormalised(),
    PassAtK(k=2),
    ProcessNormalised(),
    ReinforcePlusPlus(gamma=0.9),
    TermNormalised(),
    centred,
    zero_variance_rescaled,
    greedy_baseline,
    leave_one_out,
    length_weighted,
    mean_scaled,
]
every = pytest.mark.parametrize("component", EVERY, ids=show)
FLOATS = ("reward", "token_reward", "value", "greedy_reward", "term_reward", "step_reward")


def random_batch(seed, prompts=3, garbage=0.0):
    """Returns all that an advantage may read, with garbage wherever nothing counts."""
    rng = np.random.default_rng(seed)
    valid = rng.random((prompts, 5)) < 0.8
    mask = (np.arange(6) < rng.integers(1, 7, (prompts, 5, 1))) & (rng.random((prompts, 5, 6)) < 0.9)
    step_valid = rng.random((prompts, 5, 3)) < 0.8
    tokens, steps = mask & valid[..., None], step_valid & valid[..., None]

    def numbers(counts):
        return np.where(counts, rng.normal(0.8, 1.0, counts.shape), garbage).astype(np.float32)

    return {
        "reward": numbers(valid),
        "valid": valid,
        "mask": mask,
        "token_reward": numbers(tokens),
        "value": numbers(tokens),
        "greedy_reward": numbers(np.ones(prompts, bool)),
        "term_reward": numbers(np.repeat(valid[..., None], 2, axis=-1)),
        "term_weight": np.array([1.0, 0.5], np.float32),
        "step_reward": numbers(steps),
        "step_end": np.where(steps, rng.integers(0, 6, steps.shape), 10**6),
        "step_valid": step_valid,
    }


def read(component, batch):
    """Returns the part of a batch that a component reads."""
    return {name: jnp.asarray(batch[name]) for name in ("reward", "valid", *asks(component))}


def apply(component, batch):
    return component(batch["reward"], batch["valid"], **{name: batch[name] for name in asks(component)})


@functools.cache
def programs(component):
    """Returns the advantage, and the gradient of a weighted sum of it, compiled once for all tests."""

    def total(floats, batch):
        result = apply(component, batch | floats)
        return jnp.sum(result * jnp.cos(jnp.arange(result.size, dtype=result.dtype)).reshape(result.shape))

    return jax.jit(functools.partial(apply, component)), jax.jit(jax.grad(total))


def compute(component, batch):
    return programs(component)[0](read(component, batch))


def floats_of(component, batch):
    return {name: x for name, x in read(component, batch).items() if name in FLOATS}


def slopes(component, batch):
    """Returns the gradient on every float that the component reads."""
    return programs(component)[1](floats_of(component, batch), read(component, batch))


def test_every_advantage_is_tested_here():
    assert {getattr(c, "__name__", type(c).__name__) for c in EVERY} == set(advantage.__all__)


@every
def test_shapes_and_zeros(component):
    batch = random_batch(0)
    result = np.asarray(compute(component, batch))
    assert result.dtype == np.float32
    if result.ndim == 3:
        np.testing.assert_array_equal(result[~batch["mask"]], 0.0)
    np.testing.assert_array_equal(result[~batch["valid"]], 0.0)
    assert np.abs(result).max() > 0.1


@every
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 3e38])
def test_what_does_not_count_may_hold_anything(component, garbage):
    """Bit for bit, and gradients too, which are exactly 0 on what does not count."""
    clean, dirty = random_batch(1), random_batch(1, garbage=garbage)
    np.testing.assert_array_equal(compute(component, dirty), compute(component, clean))
    slope = slopes(component, dirty)
    chex.assert_trees_all_equal(slope, slopes(component, clean))
    np.testing.assert_array_equal(slope["reward"][~clean["valid"]], 0.0)
    if "token_reward" in slope:
        np.testing.assert_array_equal(slope["token_reward"][~clean["mask"]], 0.0)


@every
def test_the_order_of_completions_and_of_prompts_does_not_matter(component):
    batch = random_batch(2)
    plain = np.asarray(compute(component, batch))
    within, among = np.array([3, 0, 4, 1, 2]), np.array([2, 0, 1])
    alone = ("greedy_reward", "term_weight")
    moved = {name: x if name in alone else x[:, within] for name, x in batch.items()}
    np.testing.assert_allclose(compute(component, moved), plain[:, within], rtol=1e-4, atol=1e-6)
    moved = {name: x if name == "term_weight" else x[among] for name, x in batch.items()}
    np.testing.assert_allclose(compute(component, moved), plain[among], rtol=1e-4, atol=1e-6)


@every
def test_what_is_not_valid_may_be_added(component):
    """A prompt without a valid completion, and in every group one more that is not valid, change nothing."""
    batch = random_batch(3)
    plain = np.asarray(compute(component, batch))
    more = {}
    for name, x in batch.items():
        filler = {"f": np.nan, "b": name != "valid", "i": 0}[x.dtype.kind]
        if name == "term_weight":
            more[name] = x
            continue
        x = np.concatenate([x, np.full_like(x[:1], filler)])
        more[name] = x if x.ndim == 1 else np.concatenate([x, np.full_like(x[:, :1], filler)], axis=1)
    result = np.asarray(compute(component, more))
    np.testing.assert_allclose(result[:-1, :-1], plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result[-1], 0.0)
    np.testing.assert_array_equal(result[:, -1], 0.0)


@pytest.mark.parametrize("component", [c for c in EVERY if not isinstance(c, ProcessNormalised)], ids=show)
def test_a_reward_that_is_nan_is_a_completion_that_is_not_valid(component):
    batch = random_batch(4)
    batch["valid"][:] = True
    batch = batch | {name: np.where(np.isfinite(batch[name]), batch[name], 0.5) for name in FLOATS}
    out = np.zeros((3, 5), bool)
    out[0, 1] = out[2, 3] = True
    expected = compute(component, batch | {"valid": ~out})
    reward = np.where(out, np.nan, batch["reward"]).astype(np.float32)
    np.testing.assert_array_equal(compute(component, batch | {"reward": reward}), expected)


@every
def test_without_anything_valid_all_is_0(component):
    batch = random_batch(5, garbage=np.nan) | {"valid": np.zeros((3, 5), bool)}
    np.testing.assert_array_equal(compute(component, batch), 0.0)
    for slope in slopes(component, batch).values():
        np.testing.assert_array_equal(slope, 0.0)


@every
def test_bfloat16_is_computed_in_float32(component):
    batch = random_batch(6)
    half = {name: jnp.asarray(x, jnp.bfloat16) if x.dtype == np.float32 else x for name, x in batch.items()}
    wide = {name: jnp.asarray(x, jnp.float32) if x.dtype == jnp.bfloat16 else x for name, x in half.items()}
    result = compute(component, half)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, compute(component, wide), rtol=1e-6, atol=1e-6)


@every
def test_gradients_are_numerical_in_float64(float64, component):
    """Rewards are data, but a formula that is differentiated wrongly is often written wrongly."""
    batch = {k: x.astype(np.float64) if x.dtype == np.float32 else x for k, x in random_batch(7).items()}
    check_grads(lambda f: compute(component, batch | f), (floats_of(component, batch),), order=1, modes=["rev"])


@every
def test_bad_rewards_are_refused(component):
    batch = random_batch(8)
    with pytest.raises(TypeError, match="valid must be boolean"):
        compute(component, batch | {"valid": batch["reward"]})
    if isinstance(component, ProcessNormalised):
        with pytest.raises(
            ValueError, match=r"reward has shape \(5,\), but step_reward\[\.\.\., 0\] has shape \(3, 5\)"
        ):
            compute(component, batch | {"reward": batch["reward"][0]})
    else:
        with pytest.raises(ValueError, match=r"valid has shape \(5,\), but reward has shape \(3, 5\)"):
            compute(component, batch | {"valid": batch["valid"][0]})
        with pytest.raises(TypeError, match="reward must hold floating-point numbers, got dtype int32"):
            compute(component, batch | {"reward": np.zeros((3, 5), np.int32)})


@every
def test_jit_equals_eager(component):
    """Both are compared with the float64 result too, which no rounding of float32 touched."""
    batch = random_batch(9)
    eager, compiled = apply(component, read(component, batch)), compute(component, batch)
    chex.assert_trees_all_close(eager, compiled, rtol=1e-5, atol=1e-6)
    with jax.enable_x64(True):
        wide = {k: x.astype(np.float64) if x.dtype == np.float32 else x for k, x in batch.items()}
        expected = np.asarray(compute(component, wide), np.float32)
    chex.assert_trees_all_close(np.asarray(compiled), expected, rtol=1e-4, atol=1e-5)

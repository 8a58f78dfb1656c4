"""Whose key is whose: a function of (seed, step, prompt, sample)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.rollout import sample_keys

PROMPTS = jnp.array([3, 0, 70_000, 12])


def bits(keys):
    return np.asarray(jax.random.key_data(keys))


def rows(keys):
    return [tuple(row) for row in bits(keys).reshape(-1, bits(keys).shape[-1]).tolist()]


def test_all_keys_of_many_runs_steps_prompts_and_samples_are_distinct():
    seen = [
        row
        for seed, step in itertools.product((0, 1, 2), (0, 1, 2, 1000))
        for row in rows(sample_keys(seed, step, jnp.arange(16), 8))
    ]
    assert len(seen) == 3 * 4 * 16 * 8
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    ("changed", "arguments"), [("seed", (8, 5, PROMPTS)), ("step", (7, 6, PROMPTS)), ("prompt", (7, 5, PROMPTS + 1))]
)
def test_each_argument_changes_every_key(changed, arguments):
    before, after = rows(sample_keys(7, 5, PROMPTS, 3)), rows(sample_keys(*arguments, 3))
    assert not set(before) & set(after), changed


def test_neither_position_nor_batch_nor_group_size_enters():
    expected = bits(sample_keys(7, 5, PROMPTS, 3))
    np.testing.assert_array_equal(bits(sample_keys(7, 5, PROMPTS[::-1], 3)), expected[::-1])
    np.testing.assert_array_equal(bits(sample_keys(7, 5, PROMPTS[2:3], 3)), expected[2:3])
    np.testing.assert_array_equal(bits(sample_keys(7, 5, PROMPTS, 8))[:, :3], expected)


def test_a_key_is_three_folds_of_the_seed():
    fold = jax.random.fold_in
    expected = bits(fold(fold(fold(jax.random.key(7), 5), 70_000), 2))
    np.testing.assert_array_equal(bits(sample_keys(7, 5, PROMPTS, 3))[2, 2], expected)


def test_a_compiled_call_and_a_large_step_give_the_same_keys():
    compiled = jax.jit(sample_keys, static_argnames="group")
    for step in (np.int32(5), np.uint32(2**32 - 2)):
        np.testing.assert_array_equal(bits(compiled(7, step, PROMPTS, group=3)), bits(sample_keys(7, step, PROMPTS, 3)))
    assert sample_keys(7, 5, PROMPTS, 3).shape == (4, 3)

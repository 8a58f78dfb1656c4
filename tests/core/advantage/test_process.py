import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core.advantage import GroupNormalised, ProcessNormalised
from grpo_jax.testing import oracle


def everyone(reward):
    return np.ones(np.shape(reward), bool)


def process(component, reward, end, valid, length):
    """Returns the advantage of steps alone: every completion counts, and every token is scored."""
    reward = jnp.asarray(reward, jnp.float32)
    each = jnp.zeros(reward.shape[:-1]), jnp.ones(reward.shape[:-1], bool)
    mask = jnp.ones((*reward.shape[:-1], length), bool)
    return component(*each, step_reward=reward, step_end=end, step_valid=valid, mask=mask)


def random_steps(rng, length):
    """Returns two prompts with 3 completions of up to 4 steps, garbage where there is no step."""
    valid = rng.random((2, 3, 4)) < 0.7
    reward = np.where(valid, rng.normal(size=valid.shape), np.nan).astype(np.float32)
    end = np.where(valid, rng.integers(0, length, valid.shape), 10**6)
    return reward, end, valid


@pytest.mark.parametrize("ddof", [0, 1])
def test_processes_equal_the_oracle(rng, ddof):
    reward, end, valid = random_steps(rng, length=7)
    actual = process(ProcessNormalised(ddof=ddof), reward, end, valid, length=7)
    expected = [oracle.process_advantage(*p, length=7, ddof=ddof) for p in zip(reward, end, valid, strict=True)]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_token_sums_the_steps_that_end_at_or_after_it():
    """Step rewards (0, 2) and (2, 0) normalise to (-1, 1) and (1, -1); the last step of the second is not valid.

    Without it (0, 2, 2) remain: mean 4/3, deviation sqrt(8/9), so the steps are -sqrt 2 and +sqrt(1/2) twice.
    """
    reward, end = jnp.array([[0.0, 2.0], [2.0, 0.0]]), jnp.array([[0, 2], [1, 3]])
    actual = process(ProcessNormalised(ddof=0, eps=0.0), reward, end, jnp.ones((2, 2), bool), length=4)
    np.testing.assert_allclose(actual, [[0, 1, 1, 0], [0, 0, -1, -1]], atol=1e-6)
    valid = jnp.array([[True, True], [True, False]])
    low, high = -np.sqrt(2), np.sqrt(0.5)
    actual = process(ProcessNormalised(ddof=0, eps=0.0), reward, end, valid, length=4)
    np.testing.assert_allclose(actual, [[low + high, high, high, 0], [high, high, 0, 0]], atol=1e-6)


def test_one_step_at_the_end_is_outcome_supervision(rng):
    reward = rng.normal(size=(3, 5)).astype(np.float32)
    ends = np.full((3, 5, 1), 5)
    steps = process(ProcessNormalised(), reward[..., None], ends, everyone(ends), length=6)
    outcome = GroupNormalised()(reward, everyone(reward))
    np.testing.assert_allclose(steps, np.repeat(outcome[..., None], 6, -1), rtol=1e-6)


def test_tokens_outside_the_mask_and_completions_that_are_not_valid_are_0():
    """Step rewards 1 and 3 normalise to -1 and 1; without the second completion, one is left and nothing differs."""
    mask = jnp.array([[True, False, True], [False, True, True]])
    named = {
        "step_reward": jnp.array([[1.0], [3.0]]),
        "step_end": jnp.array([[2], [1]]),
        "step_valid": jnp.ones((2, 1), bool),
        "mask": mask,
    }
    actual = ProcessNormalised(ddof=0, eps=0.0)(jnp.zeros(2), jnp.ones(2, bool), **named)
    np.testing.assert_allclose(actual, [[-1, 0, -1], [0, 1, 0]], atol=1e-6)
    actual = ProcessNormalised(ddof=0, eps=0.0)(jnp.zeros(2), jnp.array([True, False]), **named)
    np.testing.assert_array_equal(actual, 0.0)


def test_bad_inputs_are_refused():
    reward = jnp.zeros((2, 3))
    with pytest.raises(TypeError, match="step_end must hold integers"):
        process(ProcessNormalised(), reward, reward, everyone(reward), length=2)
    with pytest.raises(ValueError, match=r"step_end has shape \(2, 1\), but step_reward has shape \(2, 3\)"):
        process(ProcessNormalised(), reward, jnp.zeros((2, 1), int), everyone(reward), length=2)
    with pytest.raises(TypeError, match="step_valid must be boolean"):
        process(ProcessNormalised(), reward, jnp.zeros((2, 3), int), reward, length=2)
    ends = jnp.zeros((2, 3), int)
    with pytest.raises(ValueError, match=r"mask has shape \(3, 4\), but reward has shape \(2,\); reward lacks only T"):
        ProcessNormalised()(
            jnp.zeros(2),
            jnp.ones(2, bool),
            step_reward=reward,
            step_end=ends,
            step_valid=everyone(reward),
            mask=jnp.ones((3, 4), bool),
        )

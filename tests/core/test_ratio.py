import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core import per_sequence, per_token

MASK = np.array([[True, True, False], [False, True, True], [False] * 3])
LOG_RATIO = np.array([[0.5, -0.25, np.nan], [np.inf, 1.0, 2.0], [-np.inf, np.nan, 1.0]], np.float32)
WEIGHT = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [64.0, 128.0, 256.0]], np.float32)


def test_tokens_stand_for_themselves():
    np.testing.assert_array_equal(per_token(LOG_RATIO, MASK), [[0.5, -0.25, 0.0], [0.0, 1.0, 2.0], [0.0] * 3])


def test_a_sequence_stands_for_each_of_its_tokens():
    """exp(0.5 - 0.25) is the product of the token ratios, that is pi(o|q) / pi_old(o|q)."""
    np.testing.assert_array_equal(per_sequence(LOG_RATIO, MASK), [[0.25, 0.25, 0.0], [0.0, 3.0, 3.0], [0.0] * 3])


def test_gradient_of_a_token_is_its_own():
    gradient = jax.grad(lambda x: jnp.sum(WEIGHT * per_token(x, MASK)))(LOG_RATIO)
    np.testing.assert_array_equal(gradient, np.where(MASK, WEIGHT, 0.0))


def test_gradient_of_a_sequence_reaches_all_of_its_tokens():
    """d/dx_u sum_t w_t m_t sum_u m_u x_u = m_u sum_t w_t m_t: 1 + 2 in the first row, 16 + 32 in the second."""
    gradient = jax.grad(lambda x: jnp.sum(WEIGHT * per_sequence(x, MASK)))(LOG_RATIO)
    np.testing.assert_array_equal(gradient, [[3.0, 3.0, 0.0], [0.0, 48.0, 48.0], [0.0] * 3])


@pytest.mark.parametrize("ratio", [per_token, per_sequence])
def test_jit_equals_eager(ratio):
    np.testing.assert_array_equal(jax.jit(ratio)(LOG_RATIO, MASK), ratio(LOG_RATIO, MASK))


@pytest.mark.parametrize("ratio", [per_token, per_sequence])
def test_bad_masks_are_refused(ratio):
    with pytest.raises(TypeError, match="mask must be boolean"):
        ratio(LOG_RATIO, MASK.astype(np.int32))
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), but log_ratio has shape \(3, 3\)"):
        ratio(LOG_RATIO, MASK[0])

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core.masking import as_float, masked_mean, masked_std, sanitise

MASK = np.array([[True, True, True, False], [True, False, False, False], [False] * 4])
X = np.array([[1.0, 2.0, 6.0, np.nan], [5.0, np.inf, np.nan, -np.inf], [np.nan] * 4], np.float32)


def test_mean_sees_only_the_mask_and_is_0_for_an_empty_row():
    np.testing.assert_array_equal(masked_mean(X, MASK), [3.0, 5.0, 0.0])


@pytest.mark.parametrize("ddof", [0, 1, 2])
def test_std_equals_numpy_and_is_0_without_freedom(ddof):
    expected = np.std(X[0, :3], ddof=ddof)
    np.testing.assert_allclose(masked_std(X, MASK, ddof=ddof), [expected, 0.0, 0.0], rtol=1e-6)


def test_gradient_of_the_mean_is_1_over_n_inside_and_0_outside():
    gradient = jax.grad(lambda x: masked_mean(x, MASK).sum())(X)
    np.testing.assert_allclose(gradient, MASK / np.array([[3.0], [1.0], [1.0]]), rtol=1e-6)


def test_gradient_of_the_std_is_finite_where_it_is_0():
    """d std / dx_i = (x_i - mean) / ((n - 1) std); (1, 2, 6) has mean 3 and std sqrt(7): (-2, -1, 3) / (2 sqrt 7)."""
    gradient = jax.grad(lambda x: masked_std(x, MASK, ddof=1).sum())(X)
    row = np.array([-2.0, -1.0, 3.0, 0.0]) / (2 * np.sqrt(7))
    np.testing.assert_allclose(gradient, [row, np.zeros(4), np.zeros(4)], rtol=1e-5, atol=1e-7)
    flat = jax.grad(lambda x: masked_std(x, jnp.ones(3, bool), ddof=1))(jnp.full(3, 2.0))
    np.testing.assert_array_equal(flat, 0.0)


def test_sanitise_gives_0_and_a_gradient_of_0_outside():
    np.testing.assert_array_equal(sanitise(X, MASK), np.where(MASK, X, 0.0))
    gradient = jax.grad(lambda x: jnp.exp(sanitise(x, MASK)).sum())(X)
    np.testing.assert_allclose(gradient, np.where(MASK, np.exp(np.where(MASK, X, 0.0)), 0.0), rtol=1e-6)


def test_narrow_numbers_are_widened_and_wide_ones_kept(float64):
    assert as_float(jnp.zeros(1, jnp.bfloat16)).dtype == jnp.float32
    assert as_float(jnp.zeros(1, jnp.int32)).dtype == jnp.float32
    assert as_float(jnp.zeros(1, jnp.float64)).dtype == jnp.float64


def test_wrong_masks_are_refused():
    with pytest.raises(TypeError, match="mask must be boolean"):
        masked_mean(X, MASK.astype(np.float32))
    with pytest.raises(ValueError, match=r"mask has shape \(4,\), but x has shape \(3, 4\)"):
        masked_std(X, MASK[0], ddof=1)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.core.shaping import soft_overlong
from grpo_jax.testing import oracle


def test_the_published_bounds():
    """DAPO, arXiv:2503.14476, section 4.1: free up to 16384 tokens, 4096 more until the limit."""
    length = jnp.array([0, 16384, 16385, 18432, 20479, 20480, 20481, 2**30])
    expected = [0.0, 0.0, -1 / 4096, -0.5, -4095 / 4096, -1.0, -1.0, -1.0]
    np.testing.assert_array_equal(soft_overlong(length, limit=20480, buffer=4096), expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.data())
def test_values_equal_the_oracle_and_never_rise(limit, data):
    buffer = data.draw(st.integers(1, limit))
    actual = soft_overlong(jnp.arange(60), limit=limit, buffer=buffer)
    expected = [oracle.soft_overlong(length, limit=limit, buffer=buffer) for length in range(60)]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert np.all(np.diff(actual) <= 0)
    assert actual.dtype == jnp.float32


def test_unsigned_lengths_and_jit_change_nothing():
    length = jnp.arange(12).reshape(3, 4)
    plain = soft_overlong(length, limit=9, buffer=4)
    np.testing.assert_array_equal(soft_overlong(length.astype(jnp.uint8), limit=9, buffer=4), plain)
    np.testing.assert_array_equal(jax.jit(lambda x: soft_overlong(x, limit=9, buffer=4))(length), plain)


def test_a_buffer_of_1_is_a_step_at_the_limit():
    np.testing.assert_array_equal(soft_overlong(jnp.arange(4, 8), limit=6, buffer=1), [0.0, 0.0, -1.0, -1.0])


@pytest.mark.parametrize("buffer", [0, -1, 11])
def test_a_buffer_out_of_range_is_refused(buffer):
    with pytest.raises(ValueError, match=f"buffer must be between 1 and limit=10, got {buffer}"):
        soft_overlong(jnp.arange(3), limit=10, buffer=buffer)


def test_what_is_no_number_of_tokens_is_refused():
    with pytest.raises(TypeError, match=r"limit must be a number of tokens, an integer, got 10\.0"):
        soft_overlong(jnp.arange(3), limit=10.0, buffer=1)
    with pytest.raises(TypeError, match="buffer must be a number of tokens, an integer, got True"):
        soft_overlong(jnp.arange(3), limit=10, buffer=True)
    with pytest.raises(TypeError, match="length must hold integers, got dtype float32"):
        soft_overlong(jnp.zeros(3), limit=10, buffer=1)

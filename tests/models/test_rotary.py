"""Scaled rotary frequencies, from what their papers say of short, middle and long waves."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models.rope_scaling import Linear, Llama3, Yarn
from grpo_jax.models.rotary import frequencies, rope, rotate


def turns(count, original):
    """A frequency that turns `count` times within `original` positions."""
    return 2 * math.pi * count / original


def test_linear_scaling_interpolates_positions():
    position = jnp.array([[[0, 4, 20]]])
    plain = rope(position / 4, width=6, theta=100.0)
    scaled = rope(position, width=6, theta=100.0, scaling=Linear(factor=4.0))
    np.testing.assert_allclose(scaled, plain, atol=1e-6)


def test_llama3_keeps_short_waves_divides_long_ones_and_blends_between():
    scaling = Llama3(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original=8192)
    waves = np.array([turns(n, 8192) for n in (100, 4, 2.5, 1, 0.01)])
    expected = [1, 1, 0.5 + 0.5 / 8, 1 / 8, 1 / 8]
    np.testing.assert_allclose(scaling(waves, 5e5) / waves, expected, rtol=1e-12)


def test_yarn_ramps_from_the_fast_feature_to_the_slow_one_and_lengthens():
    """theta = e^8 and 8 pairs: feature i turns e^-i radians per position, 32 turns fall on i = 2 and 1 turn past 5."""
    original = round(2 * math.pi * 32 * math.e**2)
    scaling = Yarn(factor=4.0, original=original, attention_factor=1.25)
    plain = frequencies(width=16, theta=math.exp(8))
    np.testing.assert_allclose(plain, np.exp(-np.arange(8.0)), rtol=1e-12)
    first, last = (math.log(original / (2 * math.pi * n)) for n in (32, 1))
    first, last = math.floor(first), math.ceil(last)
    kept = [1 - min(max((i - first) / (last - first), 0), 1) for i in range(8)]
    assert kept[0] == 1
    assert kept[-1] == 0
    got = frequencies(width=16, theta=math.exp(8), scaling=scaling)
    np.testing.assert_allclose(got, plain * (np.array(kept) + (1 - np.array(kept)) / 4), rtol=1e-12)
    angles = rope(jnp.arange(5)[None, None], width=16, theta=math.exp(8), scaling=scaling)
    np.testing.assert_allclose(np.hypot(*angles), 1.25, rtol=1e-6)
    lengths = np.linalg.norm(rotate(jnp.ones((1, 1, 5, 16)), angles), axis=-1)
    np.testing.assert_allclose(lengths, 1.25 * 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("original", "turns", "truncate", "kept"), [(6, 1.0, True, 1), (400, 4.0, False, 2), (400, 4.0, True, 2)]
)
def test_a_yarn_ramp_without_a_width_is_a_step(original, turns, truncate, kept):
    scaling = Yarn(
        factor=4.0, original=original, attention_factor=1.0, beta_fast=turns, beta_slow=turns, truncate=truncate
    )
    assert scaling(np.ones(4), 1e4).tolist() == [1.0] * kept + [0.25] * (4 - kept)


def test_a_frequency_is_rounded_once():
    """At position 100,000 an error of three roundings would be an angle of 0.03."""
    exact = frequencies(width=128, theta=1e6)
    cos, sin = rope(jnp.array([[[1]]]), width=128, theta=1e6)
    angle = np.arctan2(np.float64(sin), np.float64(cos))[0, 0, 0]
    np.testing.assert_allclose(angle, exact, rtol=3e-7)
    assert exact.dtype == np.float64

import jax
import jax.numpy as jnp
import pytest

from grpo_jax.core import checks


def test_unequal_shapes_name_both_arguments_and_both_shapes():
    with pytest.raises(ValueError, match=r"advantage has shape \(3,\), but logp has shape \(2, 3\)"):
        checks.require_same_shape("advantage", jnp.zeros(3), "logp", jnp.zeros((2, 3)))


def test_a_mask_of_numbers_is_a_type_error():
    with pytest.raises(TypeError, match=r"valid must be boolean .* got dtype int32"):
        checks.require_mask("valid", jnp.ones(3, jnp.int32), "reward", jnp.zeros(3))


def test_missing_axes_are_named():
    with pytest.raises(ValueError, match=r"step_reward needs the trailing axes \[\.\.\., G, K\], got shape \(3,\)"):
        checks.require_axes("step_reward", jnp.zeros(3), "G K")


def test_floats_are_no_token_ids():
    with pytest.raises(TypeError, match="targets must hold integers, got dtype float32"):
        checks.require_integers("targets", jnp.zeros(3))


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_a_number_out_of_range_is_named(value):
    with pytest.raises(ValueError, match="eps must be a finite number >= 0"):
        checks.require_at_least("eps", value, 0.0)


def test_checks_run_while_tracing():
    def f(mask):
        checks.require_mask("mask", mask, "x", jnp.zeros(2))
        return mask

    with pytest.raises(TypeError, match="mask must be boolean"):
        jax.eval_shape(f, jnp.zeros(2))
    jax.eval_shape(f, jnp.zeros(2, bool))

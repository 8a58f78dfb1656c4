"""The learning rate of every update, and the bound on the gradient."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.learn import OptimizerSettings, make_optimizer, make_schedule


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5, 0.0]),
    ],
)
def test_the_rate_rises_in_the_first_updates_and_falls_to_zero_at_the_last(schedule, expected):
    rate = make_schedule(learning_rate=1.0, warmup_steps=4, schedule=schedule, updates=8)
    np.testing.assert_allclose([rate(i) for i in range(9)], expected, atol=1e-6)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule: 'step'; expected one of"):
        make_schedule(learning_rate=1.0, warmup_steps=0, schedule="step", updates=8)


def test_gradients_are_scaled_to_the_bound_before_adam():
    """With eps large, AdamW's first step is -lr g / eps, so the bound is visible in it."""
    params, gradients = {"w": jnp.zeros(2)}, {"w": jnp.array([3.0, 4.0])}
    for bound, norm in ((1.0, 1.0), (None, 5.0)):
        optimizer = make_optimizer(OptimizerSettings(learning_rate=1.0, eps=1e6, max_grad_norm=bound), 1.0)
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        np.testing.assert_allclose(optax.tree.norm(updates), norm / 1e6, rtol=1e-4)

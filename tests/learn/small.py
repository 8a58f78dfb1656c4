"""A learner of a tiny model, and one gradient of it."""

import jax.numpy as jnp
import optax

from grpo_jax.learn import Learner, TrainState, UpdateSettings, gradient
from grpo_jax.testing.tiny import tiny_config

MODEL = tiny_config(logprob_chunk=3)
ADAM = optax.adam(1e-2)


def learner(objective, *, model=MODEL, optimizer=ADAM, critic_optimizer=None, lora=None, **updates):
    return Learner(
        model=model,
        objective=objective,
        optimizer=optimizer,
        critic_optimizer=critic_optimizer,
        lora=lora,
        updates=UpdateSettings(**updates),
    )


def policy_gradient(learner, params, reference, batch, base=None):
    """The gradient of a policy that has no optimizer and no critic."""
    state = TrainState(params=params, opt_state=(), step=jnp.zeros((), jnp.int32), reference=reference, base=base)
    gradients, metrics = gradient(learner, state, batch)
    return gradients["policy"], metrics

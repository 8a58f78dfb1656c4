"""The verbs as compiled programs.

The static half of a call (model, learner, sampler) hashes by value and selects a program; everything else is an
argument. Call them with the run's mesh in force (`jax.set_mesh`).
"""

from __future__ import annotations

import jax
import numpy as np

from grpo_jax.learn.batch import token_batch
from grpo_jax.learn.learner import Learner
from grpo_jax.learn.state import TrainState, constrain_state, init_state, renew_reference
from grpo_jax.learn.step import update
from grpo_jax.mesh.compile import jit
from grpo_jax.models.decoder import Params, init
from grpo_jax.models.weights.read import load
from grpo_jax.rollout.decoding import sample
from grpo_jax.rollout.keys import sample_keys
from grpo_jax.rollout.weights import publish
from grpo_jax.run.run import Run

ADAPTERS = np.uint32(2**32 - 2)
"""What the key of the adapters derives from: no step of a run is so late, and evaluation has the number after it."""


def _state(learner: Learner, params: Params, seed: jax.Array | int = 0) -> TrainState:
    """Returns the state at step 0 on the mesh; adapters are drawn from the seed."""
    key = jax.random.fold_in(jax.random.key(seed), ADAPTERS)
    return constrain_state(learner, init_state(learner, params, key))


def _fresh_state(learner: Learner, seed: jax.Array) -> TrainState:
    """Returns the state at step 0 of freshly drawn parameters."""
    return _state(learner, init(learner.model, jax.random.key(seed)), seed)


compiled_state = jit(_state, static_argnums=0, donate_argnums=1)
compiled_fresh_state = jit(_fresh_state, static_argnums=0)
compiled_publish = jit(publish, static_argnums=0)
compiled_keys = jit(sample_keys, static_argnames="group")
compiled_sample = jit(sample, static_argnums=0, static_argnames=("max_tokens", "eos_ids", "sampler", "check_every"))
compiled_batch = jit(token_batch, static_argnums=0)
compiled_update = jit(update, static_argnums=0, donate_argnums=1)
compiled_reference = jit(renew_reference, donate_argnums=0, static_argnums=1)


def first_state(run: Run, learner: Learner) -> TrainState:
    """Returns the state at step 0: of the model that the run begins from, or of fresh parameters."""
    source, seed = run.model_source, run.settings.seed
    if source is None:
        return compiled_fresh_state(learner, seed)
    params = load(source.directory, learner.model, source.family.names(learner.model), run.mesh)
    return compiled_state(learner, params, seed)

"""The random key of every completion: a function of (seed, step, prompt, sample) and nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key


def sample_keys(seed: int, step: Int[Array, ""] | int, prompt: Int[Array, "P"], group: int) -> Key[Array, "P G"]:
    """Returns the key of each completion.

    Neither the mesh nor the other prompts of the batch enter, so a completion can be drawn again alone.

    Args:
      seed: the run's seed.
      step: the step of the run.
      prompt: the identity of each prompt (its index in the data set).
      group: completions per prompt.
    """
    base = jax.random.fold_in(jax.random.key(seed), step)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(lambda key: fold(key, jnp.arange(group)))(fold(base, prompt))

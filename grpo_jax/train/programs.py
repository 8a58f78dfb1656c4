"""The compiled programs of a run, and the way of host data into and out of them.

The static half of a call (model, learner, sampler) hashes by value and selects a program; everything else is an
argument. Call them with the run's mesh in force (`jax.set_mesh`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.data import Dataset, encode_prompts
from grpo_jax.mesh import fetch, jit, sharding
from grpo_jax.models import init
from grpo_jax.models.decoder import Params
from grpo_jax.rollout import Sampler, generate, publish, sample_keys
from grpo_jax.train.experience import experience
from grpo_jax.train.learner import Learner
from grpo_jax.train.run import Run
from grpo_jax.train.state import TrainState, constrain_state, init_state, renew_reference
from grpo_jax.train.step import train_step
from grpo_jax.types import PromptBatch, Rollout

ADAPTERS = np.uint32(2**32 - 2)
"""What the key of the adapters derives from: no step of a run is so late, and evaluation has the number after it."""


def _state(learner: Learner, params: Params, seed: jax.Array | int = 0) -> TrainState:
    """Returns the state at step 0 on the mesh; adapters are drawn from the seed."""
    key = jax.random.fold_in(jax.random.key(seed), ADAPTERS)
    return constrain_state(learner, init_state(learner, params, key))


def _first_state(learner: Learner, seed: jax.Array) -> TrainState:
    """Returns the state at step 0 of freshly drawn parameters."""
    return _state(learner, init(learner.model, jax.random.key(seed)), seed)


make_state = jit(_state, static_argnums=0)
make_first_state = jit(_first_state, static_argnums=0)
make_published = jit(publish, static_argnums=0)
make_keys = jit(sample_keys, static_argnames="group")
make_rollout = jit(generate, static_argnums=0, static_argnames=("length", "eos_ids", "sampler", "check_every"))
make_experience = jit(experience, static_argnums=0)
make_step = jit(train_step, static_argnums=0, donate_argnums=1)
make_reference = jit(renew_reference, donate_argnums=0, static_argnums=1)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Completions of one batch of prompts, on the device and as text."""

    indices: Sequence[int]
    """P rows of the data set."""
    prompt: PromptBatch
    rollout: Rollout
    prompts: list[str]
    """P texts."""
    completions: list[str]
    """P x G texts, the completions of one prompt together."""
    columns: dict[str, list]
    """The data set's other columns, repeated as the completions are."""
    tokens: np.ndarray
    """int32 `[P, G, T]` on the host, with its mask and where a completion ended by itself."""
    mask: np.ndarray
    ended: np.ndarray


def place_prompts(run: Run, texts: Sequence[str]) -> PromptBatch:
    """Returns the prompts' tokens, on the mesh."""
    tokens, mask = encode_prompts(texts, run.tokenizer, length=run.prompt_length)
    return jax.device_put(PromptBatch(tokens=tokens, mask=mask), sharding(run.mesh, "prompt"))


def draw(
    run: Run,
    published: Params,
    data: Dataset,
    indices: Sequence[int],
    *,
    step: int | np.uint32,
    group: int,
    sampler: Sampler,
) -> Drawn:
    """Returns `group` completions of each of the data set's rows `indices`."""
    texts = data.prompts(indices)
    prompt = place_prompts(run, texts)
    keys = make_keys(run.seed, step, jnp.asarray(indices, jnp.int32), group=group)
    rollout = make_rollout(
        run.learner.model,
        published,
        prompt,
        jax.device_put(keys, sharding(run.mesh, "prompt", "sample")),
        length=run.rolling.max_tokens,
        eos_ids=run.tokenizer.eos_ids,
        sampler=sampler,
        check_every=run.rolling.check_every,
    )
    tokens, mask, ended = fetch((rollout.tokens, rollout.mask, rollout.ended))
    rows = zip(tokens.reshape(-1, tokens.shape[-1]), mask.reshape(-1, mask.shape[-1]), strict=True)
    return Drawn(
        indices=indices,
        prompt=prompt,
        rollout=rollout,
        prompts=texts,
        completions=[run.tokenizer.decode(row[drawn].tolist()) for row, drawn in rows],
        columns={name: [v for v in values for _ in range(group)] for name, values in data.columns(indices).items()},
        tokens=tokens,
        mask=mask,
        ended=ended,
    )

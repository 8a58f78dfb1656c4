"""The supervised phase: the same step as the policy's, on demonstrations, a group of one with weight one."""

from __future__ import annotations

import jax
import numpy as np

from grpo_jax.data import batch_indices, encode_completions
from grpo_jax.mesh import sharding
from grpo_jax.train.programs import make_step, place_prompts
from grpo_jax.train.record import Record
from grpo_jax.train.run import Run
from grpo_jax.train.state import TrainState
from grpo_jax.types import TokenBatch


def warm_up(run: Run, state: TrainState, record: Record) -> TrainState:
    """Returns the state after all supervised updates."""
    warm = run.warm_up
    order = np.arange(warm.batch, dtype=np.int32)[None]
    for step in range(warm.steps):
        state, metrics = make_step(warm.learner, state, demonstrations(run, step), order)
        record.warm_up(step + 1, warm.steps, metrics)
    return state


def demonstrations(run: Run, step: int) -> TokenBatch:
    """Returns the supervised batch of one step, a function of (seed, step)."""
    warm = run.warm_up
    rows = batch_indices(run.seed, step * warm.batch, size=len(run.train_data), count=warm.batch)
    prompts = run.train_data.prompts(rows)
    texts = warm.demonstrate(rows, (run.seed, step))
    tokens, mask = encode_completions(texts, run.tokenizer, length=run.rolling.max_tokens)
    tokens, mask = tokens[:, None], mask[:, None]
    place = sharding(run.mesh, "prompt")
    tokens, mask, weight = jax.device_put((tokens, mask, np.ones(tokens.shape, np.float32)), place)
    return TokenBatch(prompt=place_prompts(run, prompts), tokens=tokens, mask=mask, advantage=weight)

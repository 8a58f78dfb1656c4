"""The supervised phase: the same step as the policy's, on demonstrations, a group of one with weight one."""

from __future__ import annotations

import jax
import numpy as np

from grpo_jax.data import batch_indices, encode_completions
from grpo_jax.learn.state import TrainState
from grpo_jax.mesh.rules import sharding
from grpo_jax.run.compiled import compiled_update
from grpo_jax.run.draw import encoded
from grpo_jax.run.record import Record
from grpo_jax.run.run import Run
from grpo_jax.types import TokenBatch


def warm_up(run: Run, state: TrainState, record: Record) -> TrainState:
    """Returns the state after all supervised updates."""
    steps = run.settings.warmup.steps
    for step in range(steps):
        state, metrics = compiled_update(run.warmup_learner, state, demonstrations(run, step))
        record.warm_up(step + 1, steps, metrics)
    return state


def demonstrations(run: Run, step: int) -> TokenBatch:
    """Returns the supervised batch of one step, a function of (seed, step)."""
    seed, count = run.settings.seed, run.settings.warmup.batch
    rows = batch_indices(seed, step * count, size=len(run.train_data), count=count)
    texts = run.demonstrate(rows, (seed, step))
    tokens, mask = encode_completions(texts, run.tokenizer, length=run.settings.sampling.max_tokens)
    tokens, mask = tokens[:, None], mask[:, None]
    batch = TokenBatch(
        prompt=encoded(run, run.train_data.prompts(rows)),
        tokens=tokens,
        mask=mask,
        advantage=np.ones(tokens.shape, np.float32),
    )
    return jax.device_put(batch, sharding(run.mesh, run.learner.model.rules, "prompt"))

"""The supervised phase: the same step as the policy's, on demonstrations, a group of one with weight one."""

from __future__ import annotations

import jax
import numpy as np

from grpo_jax.data import batch_indices, encode_completions
from grpo_jax.learn.state import TrainState
from grpo_jax.mesh.rules import sharding
from grpo_jax.run.compiled import compiled_update
from grpo_jax.run.draw import encoded
from grpo_jax.run.layouts import Layouts
from grpo_jax.run.record import Record
from grpo_jax.run.run import Run
from grpo_jax.types import TokenBatch


def warm_up(run: Run, state: TrainState, record: Record) -> TrainState:
    """Returns the state after all supervised updates."""
    steps, learner, layouts = run.settings.warmup.steps, run.warmup_learner, Layouts(run)
    for step in range(steps):
        batch = demonstrations(run, step)
        lengths = batch.mask.sum(-1), batch.prompt.mask.sum(-1)
        layout, _ = layouts.of(learner, *lengths, use="warmup")
        state, metrics = compiled_update(learner, state, place_demonstrations(run, batch), None, layout)
        record.warm_up(step + 1, steps, metrics)
    return state


def demonstrations(run: Run, step: int) -> TokenBatch:
    """Returns the supervised batch of one step as NumPy arrays, a function of (seed, step)."""
    seed, count = run.settings.seed, run.settings.warmup.batch
    rows = batch_indices(seed, step * count, size=len(run.train_data), count=count)
    texts = run.demonstrate(rows, (seed, step))
    tokens, mask = encode_completions(texts, run.tokenizer, length=run.settings.sampling.max_tokens)
    tokens, mask = tokens[:, None], mask[:, None]
    return TokenBatch(
        prompt=encoded(run, run.train_data.prompts(rows)),
        tokens=tokens,
        mask=mask,
        advantage=np.ones(tokens.shape, np.float32),
    )


def place_demonstrations(run: Run, batch: TokenBatch) -> TokenBatch:
    """Returns a supervised batch on the mesh."""
    return jax.device_put(batch, sharding(run.mesh, run.learner.model.rules, "prompt"))

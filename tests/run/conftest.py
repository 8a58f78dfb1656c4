"""Whole runs on a model so small that a step takes milliseconds."""

import jax
import pytest

from grpo_jax.config import load
from grpo_jax.config.build import build_run

TINY = (
    "model.hidden=16",
    "model.layers=2",
    "model.heads=2",
    "model.kv_heads=1",
    "model.mlp=24",
    "model.unroll=1",
    "data.operations=1",
    "data.digits=1",
    "data.train_size=40",
    "data.test_size=6",
    "sampling.group=4",
    "sampling.max_tokens=12",
    "sampling.check_every=4",
    "train.prompts=4",
    "train.steps=6",
    "train.micro_prompts=",
    "optimizer.schedule=constant",
    "optimizer.warmup_steps=0",
    "warmup.steps=2",
    "warmup.batch=4",
    "eval.every=",
    "eval.samples=4",
    "checkpoint.every=2",
    "rewards=[{function: arithmetic.format}, {function: 'tests.run.rewards:digits', weight: 0.1}]",
)


@pytest.fixture
def tiny_run(tmp_path):
    """Returns a function that builds a tiny run with changes, in a directory of the test's own."""

    def build(*changes, out="run", rewards=None):
        overrides = (*TINY, f"out={tmp_path / out}", *changes)
        return build_run(load("configs/arithmetic.yaml", overrides), rewards=rewards)

    yield build
    # A run compiles thousands of memory maps' worth of programs (tests/conftest.py).
    jax.clear_caches()

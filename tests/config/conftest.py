"""A small configuration file that each test changes in one place."""

from collections.abc import Callable
from pathlib import Path

import pytest

from grpo_jax.config import Config, load

TEXT = """
model: {hidden: 32, layers: 2, heads: 4, kv_heads: 2, mlp: 64}
data: {source: arithmetic, train_size: 100, test_size: 16, prompt_length: 12}
sampling: {group: 4, max_tokens: 16}
rewards: [{function: arithmetic.answer}]
objective: grpo
train: {steps: 10, prompts: 8}
optimizer: {learning_rate: 1e-3}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(TEXT)
    return file


@pytest.fixture
def change(path: Path) -> Callable[..., Config]:
    """Loads the file with the given overrides."""
    return lambda *overrides: load(path, overrides)

"""The names that `grpo_jax` offers."""

import importlib
import types

import grpo_jax


def test_every_exported_name_is_a_thing_and_not_the_folder_of_its_name():
    """Importing a subpackage puts it into the package under its own name, where it would hide an export."""
    for folder in ("cli", "config", "core", "data", "mesh", "models", "rewards", "rollout", "learn", "run", "types"):
        importlib.import_module(f"grpo_jax.{folder}")
    modules = [name for name in grpo_jax.__all__ if isinstance(getattr(grpo_jax, name), types.ModuleType)]
    assert modules == []
    assert len(set(grpo_jax.__all__)) == len(grpo_jax.__all__) > 30

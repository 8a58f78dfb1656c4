"""Group Relative Policy Optimization and its family, as pure functions on a JAX mesh.

Names are imported when they are first used, so that reward workers, which need none of JAX, start fast.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "grpo_jax.types": ("PromptBatch", "Rollout", "TokenBatch", "WeightedSum"),
    "grpo_jax.core": (
        "ClippedValue",
        "Dpo",
        "FullVocabulary",
        "Gae",
        "GroupNormalised",
        "GroupRobust",
        "Ipo",
        "IpoPerToken",
        "Objective",
        "PpoClip",
        "ProcessNormalised",
        "cispo",
        "dapo",
        "deepseek_r1",
        "dr_grpo",
        "exact",
        "gmpo",
        "gpg",
        "gradient_weights",
        "grpo",
        "gspo",
        "gspo_token",
        "k1",
        "k2",
        "k3",
        "opo",
        "per_sequence",
        "per_token",
        "policy_loss",
        "ppo",
        "ppo_clip",
        "preference_loss",
        "reinforce",
        "reinforce_pp",
        "remax",
        "rloo",
        "sapo",
        "sequence_mean",
        "sft",
        "token_logprobs",
        "token_mean",
        "trl_grpo",
        "verl_grpo",
        "verl_ppo",
    ),
    "grpo_jax.models": ("DecoderConfig",),
    "grpo_jax.rollout": ("Sampler", "generate", "publish", "sample_keys"),
    "grpo_jax.train": ("Learner", "Result", "Run", "TrainState", "train_step"),
    "grpo_jax.config": ("Config", "ConfigError", "load"),
    "grpo_jax.config.build": ("build_run",),
    "grpo_jax.rewards": ("Reward",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'grpo_jax' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_MODULE[name]), name)


def __dir__() -> list[str]:
    return __all__

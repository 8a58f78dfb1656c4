"""Objectives under the names of their papers. Each is a plain value: print it, compare it, replace a field.

What belongs to a run and not to its loss (dynamic sampling, batch sizes, learning rates, when the reference is
replaced) is in configs/recipes; the docstrings name the published numbers.
"""

from grpo_jax.core.presets.critic import ppo
from grpo_jax.core.presets.group import dapo, deepseek_r1, dr_grpo, grpo, ppo_clip
from grpo_jax.core.presets.parity import trl_grpo, verl_grpo, verl_ppo
from grpo_jax.core.presets.policy_gradient import gpg, opo, reinforce_pp, remax, rloo, sft
from grpo_jax.core.presets.sequence import gmpo, gspo, gspo_token
from grpo_jax.core.presets.soft import cispo, sapo

__all__ = [
    "cispo",
    "dapo",
    "deepseek_r1",
    "dr_grpo",
    "gmpo",
    "gpg",
    "grpo",
    "gspo",
    "gspo_token",
    "opo",
    "ppo",
    "ppo_clip",
    "reinforce_pp",
    "remax",
    "rloo",
    "sapo",
    "sft",
    "trl_grpo",
    "verl_grpo",
    "verl_ppo",
]

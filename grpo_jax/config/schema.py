"""A whole run: the sections of the configuration, each defined beside the code that reads it.

| section | defined in |
| --- | --- |
| `model`, `lora` | `models/settings.py` |
| `mesh`, with its `rules` | `mesh/settings.py` |
| `data` | `data/settings.py` |
| `sampling` | `rollout/settings.py` |
| `rewards` | `rewards/settings.py` |
| `train`, `optimizer` | `learn/settings.py`, `run/settings.py` |
| `warmup`, `eval`, `checkpoint` and the fields at the top | `run/settings.py` |

Rules between fields are in `validate`. Nothing here imports JAX.
"""

from __future__ import annotations

from typing import Any

from grpo_jax.learn.settings import OptimizerSettings
from grpo_jax.mesh.settings import MeshSettings
from grpo_jax.models.settings import Lora, ModelSettings
from grpo_jax.rewards.settings import RewardSettings
from grpo_jax.run.settings import RunSettings
from grpo_jax.settings import settings


@settings
class Config(RunSettings):
    """A whole run: what the loop reads, and what its parts are built from."""

    model: ModelSettings
    lora: Lora = Lora()
    mesh: MeshSettings = MeshSettings()
    rewards: tuple[RewardSettings, ...] = ()
    """Terms of the reward, summed by weight; none takes those of the data source."""
    objective: str | dict[str, Any]
    """A preset's name, or `{preset: name, field: replacement, ...}`; `objective.build_objective` reads it."""
    optimizer: OptimizerSettings

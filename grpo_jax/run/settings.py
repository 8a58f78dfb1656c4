"""The settings of the loop and of what stands around it. Nothing here imports JAX."""

from __future__ import annotations

from typing import Literal

from grpo_jax.data.settings import DataSettings
from grpo_jax.learn.settings import UpdateSettings
from grpo_jax.rollout.settings import SamplingSettings
from grpo_jax.settings import Count, Positive, PositiveShare, Share, Text, Whole, settings


@settings
class TrainSettings(UpdateSettings):
    """The loop of policy updates."""

    steps: Count
    """Rollouts, each followed by its updates."""
    prompts: Count
    """Prompts per step; each is sampled `sampling.group` times."""
    reference_every: Count | None = None
    """Steps after which the reference moves to the current policy; null keeps the first one."""
    reference_mix: PositiveShare = 1.0
    """How far the reference moves each time: 1 replaces it, less mixes the parameters (in its dtype)."""
    dynamic_rounds: Count = 1
    """Rounds of prompts a step may draw to replace groups of equal rewards (dynamic sampling); 1 replaces none."""

    @property
    def all_updates(self) -> int:
        """Optimizer updates of the whole run."""
        return self.steps * self.updates


@settings
class WarmupSettings:
    """Supervised updates on demonstrations, before the first rollout."""

    steps: Whole = 0
    """Updates; 0 skips the phase."""
    batch: Count = 256
    """Demonstrations per update."""
    learning_rate: Positive = 1e-3
    """Learning rate of this phase."""
    wrong: Share = 0.5
    """Share of steps that demonstrations get wrong, where the data source makes them up (arithmetic: carries)."""


@settings
class EvalSettings:
    """Evaluation on held-out problems; its filters never touch training."""

    every: Count | None = None
    """Steps between evaluations; null never evaluates during training."""
    samples: Count = 4
    """Sampled completions per held-out problem."""
    top_k: Count | None = None
    """Keep the k likeliest tokens; null keeps all."""
    top_p: PositiveShare | None = None
    """Keep the smallest set of likeliest tokens with this much probability; null keeps all."""
    min_p: PositiveShare | None = None
    """Keep tokens at least this likely relative to the likeliest; null keeps all."""
    answer_after: str = ""
    """maj@k votes on the text after the last occurrence of this; empty votes on the whole completion."""


@settings
class CheckpointSettings:
    """When state is written."""

    every: Count = 20
    """Steps between checkpoints."""
    keep: Count = 2
    """Newest checkpoints that stay on disk."""


@settings
class RunSettings:
    """What of a configuration the loop itself reads."""

    seed: Whole = 0
    """Every random key and the order of the data derive from it."""
    out: Text = "outputs/run"
    """Directory of everything that the run writes."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Continue from a checkpoint in `out`: if there is one, never, or fail without one."""
    data: DataSettings
    sampling: SamplingSettings
    reward_workers: Whole = 0
    """Processes that compute rewards; 0 computes them in the main process."""
    reward_deadline: Positive = 10.0
    """Seconds after which a reward is given up and its sample masked out."""
    train: TrainSettings
    warmup: WarmupSettings = WarmupSettings()
    eval: EvalSettings = EvalSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()

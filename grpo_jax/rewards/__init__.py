"""Host side: reward functions, and the workers that run them. Nothing here imports JAX."""

from grpo_jax.rewards.resolve import resolve
from grpo_jax.rewards.run import Reward, Rewards, Scores
from grpo_jax.rewards.scoring import Scoring

__all__ = ["Reward", "Rewards", "Scores", "Scoring", "resolve"]

"""From weights to completions: publish them for decoding, draw, and say how each token was drawn."""

from grpo_jax.rollout.generate import generate
from grpo_jax.rollout.keys import sample_keys
from grpo_jax.rollout.publish import publish
from grpo_jax.rollout.sampler import Sampler

__all__ = ["Sampler", "generate", "publish", "sample_keys"]

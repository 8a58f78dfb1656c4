"""From weights to completions: publish them for decoding, draw, and say how each token was drawn."""

from grpo_jax.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "grpo_jax.rollout.decoding": ("sample",),
        "grpo_jax.rollout.keys": ("sample_keys",),
        "grpo_jax.rollout.sampler": ("Sampler",),
        "grpo_jax.rollout.settings": ("SamplingSettings",),
        "grpo_jax.rollout.stages": ("Stages",),
        "grpo_jax.rollout.weights": ("publish",),
    },
)

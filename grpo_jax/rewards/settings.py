"""One term of the reward, as the configuration writes it."""

from __future__ import annotations

from grpo_jax.settings import Number, Text, settings


@settings
class RewardSettings:
    """One term of the reward."""

    function: Text
    """Name of the function: a built-in `module.name`, or `package.module:name`."""
    weight: Number = 1.0
    """Factor of this term in the sum."""

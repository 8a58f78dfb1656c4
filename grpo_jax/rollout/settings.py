"""How completions are drawn in training, as a section of the configuration. Nothing here imports JAX."""

from __future__ import annotations

from grpo_jax.settings import Count, Positive, settings


@settings
class SamplingSettings:
    """How completions are drawn in training: from the whole distribution, so there is no filter here."""

    group: Count = 8
    """Completions per prompt."""
    max_tokens: Count
    """Tokens that a completion may have, the end included."""
    temperature: Positive = 1.0
    """Divides the logits; the log-probs that are scored apply it too."""
    rows: Count | None = None
    """Completions that are drawn at once, in whole groups; prompts that wait take the places of those that have ended.
    Null draws a whole step's at once."""
    check_every: Count = 8
    """Tokens drawn between two tests for the end of all rows."""

"""Where prompts come from, as a section of the configuration."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from grpo_jax.settings import Count, Text, Variables, settings


@settings
class DataSettings:
    """Where prompts come from."""

    source: Text
    """`arithmetic` (made up on the fly), the path of a .jsonl file, or `package.module:name` of a `Source`."""
    test: Text | None = None
    """Path of a .jsonl file of held-out rows; null for other sources, and where none are held out."""
    url: Text | None = None
    """Folder of the web that has both files: where one is missing, the message says how to fetch it."""
    prompt: Text = "prompt"
    """The .jsonl column that holds the prompt; the others reach the rewards by name."""
    train_size: Count | None = None
    """Problems to train on; null means every row of a .jsonl file."""
    test_size: Count | None = None
    """Held-out problems; null means every row of a .jsonl file."""
    alphabet: Text | None = None
    """Characters of the tokenizer; null means those of the source (printable ASCII, unless it says otherwise)."""
    template: Text | None = None
    """Chat template: `model` (its own), `r1`, a file or Jinja; null takes text prompts as they stand."""
    system: Text | None = None
    """System prompt in front of every conversation; needs a template."""
    template_options: Variables = field(default_factory=dict)
    """Variables of the chat template, such as {enable_thinking: false}; needs model.path."""
    too_long: Literal["error", "skip"] = "error"
    """Prompts beyond prompt_length: `error` refuses the data, `skip` leaves them out and says how many."""
    operations: Count = 2
    """Operations in one problem (arithmetic only)."""
    digits: Count = 2
    """Digits of each operand (arithmetic only)."""
    prompt_length: Count
    """Tokens that a prompt may have, BOS included."""

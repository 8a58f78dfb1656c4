"""Prompts beyond the limit: refused, or left out and counted. None is ever cut."""

from __future__ import annotations

from typing import Literal

from grpo_jax.data.dataset import Dataset
from grpo_jax.data.tokenizer import Tokenizer


def within_limit(
    data: Dataset, tokenizer: Tokenizer, *, length: int, too_long: Literal["error", "skip"] = "error"
) -> tuple[Dataset, int]:
    """Returns the rows whose prompts have at most `length` tokens, and how many were left out.

    >>> from grpo_jax.data import CharTokenizer
    >>> data = Dataset(({"prompt": "a"}, {"prompt": "aaaa"}))
    >>> within_limit(data, CharTokenizer("a"), length=3, too_long="skip")
    (Dataset(rows=({'prompt': 'a'},)), 1)

    Raises:
      ValueError: a prompt is longer and `too_long` is 'error', no row is left, or a prompt cannot be encoded; the
        message names the row.
    """
    if too_long not in ("error", "skip"):
        raise ValueError(f"too_long: {too_long!r}; expected 'error' or 'skip'")
    sizes = []
    for i, row in enumerate(data.rows):
        try:
            sizes.append(len(tokenizer.encode_prompt(row["prompt"])))
        except ValueError as error:
            raise ValueError(f"row {i}: {error}") from None
    kept = tuple(row for row, size in zip(data.rows, sizes, strict=True) if size <= length)
    skipped = len(sizes) - len(kept)
    if skipped and (too_long == "error" or not kept):
        first = next(i for i, size in enumerate(sizes) if size > length)
        way_out = "" if too_long == "skip" else ", or leave the long ones out"
        raise ValueError(
            f"{skipped} of {len(sizes)} prompts have more tokens than the limit of {length} (row {first} is the first, "
            f"with {sizes[first]}; the longest has {max(sizes)}): set data.prompt_length to {max(sizes)}{way_out}"
        )
    return Dataset(kept), skipped

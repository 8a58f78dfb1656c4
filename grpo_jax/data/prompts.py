"""Texts to rectangular arrays of tokens, right-padded, with the mask beside them. Nothing is ever cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grpo_jax.data.chat import Prompt
from grpo_jax.data.tokenizer import Tokenizer


def encode_prompts(prompts: Sequence[Prompt], tokenizer: Tokenizer, *, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the prompts' tokens and their mask: int32 [P, S] and bool [P, S] with S = `length`.

    >>> from grpo_jax.data import CharTokenizer
    >>> tokens, mask = encode_prompts(["ab", "b"], CharTokenizer("ab"), length=4)
    >>> tokens.tolist(), mask.sum(axis=1).tolist()
    ([[1, 3, 4, 0], [1, 4, 0, 0]], [3, 2])

    Raises:
      ValueError: a prompt has more than `length` tokens, or is not one that the tokenizer can encode.
    """
    rows = _encode(prompts, tokenizer.encode_prompt)
    return _pad(rows, tokenizer.pad_id, length, what="prompt", field="data.prompt_length")


def encode_completions(texts: Sequence[str], tokenizer: Tokenizer, *, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the completions' tokens, EOS last, and their mask: int32 [B, T] and bool [B, T] with T = `length`.

    The EOS token is in the mask: it is what supervised training teaches last.

    >>> from grpo_jax.data import CharTokenizer
    >>> tokens, mask = encode_completions(["ab"], CharTokenizer("ab"), length=4)
    >>> tokens.tolist(), mask.tolist()
    ([[3, 4, 2, 0]], [[True, True, True, False]])

    Raises:
      ValueError: a completion has more than `length` tokens, or a character that the tokenizer does not know.
    """
    rows = _encode(texts, lambda text: [*tokenizer.encode(text), *tokenizer.eos_ids[:1]])
    return _pad(rows, tokenizer.pad_id, length, what="completion", field="sampling.max_tokens")


def _encode(texts: Sequence[Any], encode: Callable[[Any], list[int]]) -> list[list[int]]:
    rows = []
    for i, text in enumerate(texts):
        try:
            rows.append(encode(text))
        except ValueError as error:
            raise ValueError(f"row {i}: {error}") from None
    return rows


def _pad(
    rows: Sequence[Sequence[int]], pad_id: int, length: int, *, what: str, field: str
) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        if len(row) > length:
            raise ValueError(
                f"row {i}: the {what} has {len(row)} tokens, but the limit is {length}: "
                f"set {field} to at least {len(row)}, or leave the row out"
            )
        tokens[i, : len(row)] = row
        mask[i, : len(row)] = True
    return tokens, mask

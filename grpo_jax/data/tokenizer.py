"""What the library asks of a tokenizer, and one of single characters: enough for the embedded task and for tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from grpo_jax.data.char_files import write_char_files
from grpo_jax.data.chat import Prompt

PRINTABLE = "\n" + "".join(chr(code) for code in range(32, 127))
"""Newline and every printable ASCII character."""

_SPECIALS = 3


class Tokenizer(Protocol):
    """Texts to ids and back.

    `pad_id` fills arrays up; `bos_id` stands before prompts, unless it is None; a token of `eos_ids` ends a completion.
    `note` is a remark for the run's log, or ''.
    """

    pad_id: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    note: str

    @property
    def vocab_size(self) -> int:
        """Returns the number of ids that a model for this tokenizer has."""

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Returns the tokens of a text or of messages, with whatever stands before a completion. Never empty."""

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, without specials."""

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of all ids; specials are empty and do not end it."""

    def ends(self, ids: Iterable[int]) -> list[int]:
        """Returns, for each token, how many characters are decoded through that token."""

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files, for an export."""


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
    """One id per character: pad is 0, bos 1, eos 2, then the alphabet in its own order.

    Two tokenizers are equal when their alphabets are.

    >>> tokenizer = CharTokenizer("0123456789+=")
    >>> tokenizer.encode("1+2=")
    [4, 13, 5, 14]
    >>> tokenizer.decode([1, 4, 13, 5, 14, 2, 0])
    '1+2='

    Raises:
      ValueError: the alphabet is empty or holds a character twice.
    """

    alphabet: str
    _ids: dict[str, int] = dataclasses.field(init=False, repr=False, compare=False)
    _pieces: dict[int, str] = dataclasses.field(init=False, repr=False, compare=False)

    pad_id = 0
    bos_id = 1
    eos_ids = (2,)
    note = ""

    def __post_init__(self) -> None:
        if not self.alphabet:
            raise ValueError("alphabet is empty: give at least one character")
        ids = {character: _SPECIALS + i for i, character in enumerate(self.alphabet)}
        if len(ids) < len(self.alphabet):
            twice = next(c for c in self.alphabet if self.alphabet.count(c) > 1)
            raise ValueError(f"alphabet holds {twice!r} more than once: give each character once")
        pieces = dict.fromkeys(range(_SPECIALS), "") | {i: character for character, i in ids.items()}
        object.__setattr__(self, "_ids", ids)
        object.__setattr__(self, "_pieces", pieces)

    @property
    def vocab_size(self) -> int:
        """Returns the number of ids, the three specials included."""
        return len(self._pieces)

    def encode(self, text: str) -> list[int]:
        """Returns one id per character, without specials.

        Raises:
          ValueError: a character is not in the alphabet; nothing is dropped or replaced.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError:
            position, character = next((i, c) for i, c in enumerate(text) if c not in self._ids)
            raise ValueError(
                f"character {character!r} at position {position} is not in the alphabet {self.alphabet!r}"
            ) from None

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Returns BOS and the tokens of a text.

        Raises:
          ValueError: the prompt is a list of messages, or has a character that is not in the alphabet.
        """
        if not isinstance(prompt, str):
            raise ValueError("the prompt is a list of messages: a tokenizer of characters takes text")
        return [self.bos_id, *self.encode(prompt)]

    def save(self, folder: Path) -> None:
        """Writes the tokenizer in the files of the Hugging Face format."""
        write_char_files(self.alphabet, folder)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of all ids; specials are empty and do not end it.

        Raises:
          ValueError: an id is outside the vocabulary.
        """
        return "".join(self._texts(ids))

    def ends(self, ids: Iterable[int]) -> list[int]:
        """Returns, for each token, how many characters are decoded through that token.

        A statement about the first `n` characters belongs to the first token whose entry is at least `n`.

        >>> CharTokenizer("abc").ends([1, 3, 4, 2])
        [0, 1, 2, 2]
        """
        total, result = 0, []
        for piece in self._texts(ids):
            total += len(piece)
            result.append(total)
        return result

    def _texts(self, ids: Iterable[int]) -> list[str]:
        ids = [int(i) for i in ids]
        try:
            return [self._pieces[i] for i in ids]
        except KeyError as error:
            raise ValueError(
                f"id {error.args[0]} is outside the vocabulary of {self.vocab_size} ids: "
                f"set the model's vocabulary size to {self.vocab_size}"
            ) from None

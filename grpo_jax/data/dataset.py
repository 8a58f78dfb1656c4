"""Prompts and their columns in memory, and the JSON Lines files that they come from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from grpo_jax.data.chat import Prompt, check_prompt


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Rows that all have a `prompt`, which is a text or a list of messages, and the same other columns.

    >>> data = Dataset(({"prompt": "1+1=", "answer": "2"}, {"prompt": "2+1=", "answer": "3"}))
    >>> len(data), data.prompts([1]), data.columns([1, 0])
    (2, ['2+1='], {'answer': ['3', '2']})

    Raises:
      ValueError: a row has neither text nor messages in `prompt`, or other columns than the first row.
    """

    rows: tuple[dict[str, Any], ...]

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if "prompt" not in row:
                raise ValueError(f"row {i} has no column 'prompt'; its columns are {sorted(row)}")
            try:
                check_prompt(row["prompt"])
            except ValueError as error:
                raise ValueError(f"row {i} has {error}") from None
            if row.keys() != self.rows[0].keys():
                raise ValueError(
                    f"row {i} has the columns {sorted(row)}, but row 0 has {sorted(self.rows[0])}: "
                    "give every row the same columns (null where a value is absent)"
                )

    def __len__(self) -> int:
        return len(self.rows)

    def prompts(self, indices: Sequence[int]) -> list[Prompt]:
        """Returns the prompts of these rows."""
        return [self.rows[i]["prompt"] for i in indices]

    def columns(self, indices: Sequence[int]) -> dict[str, list[Any]]:
        """Returns the other columns of these rows, by name: the keyword arguments of a reward."""
        names = [name for name in self.rows[0] if name != "prompt"] if self.rows else []
        return {name: [self.rows[i][name] for i in indices] for name in names}

    def fingerprint(self) -> str:
        """Returns a SHA-256 of the rows in their order, as 64 hexadecimal digits.

        It does not depend on the order of a row's columns. A resumed run compares it with the stored one.
        """
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps(row, sort_keys=True, separators=(",", ":")).encode() + b"\n")
        return digest.hexdigest()


def read_jsonl(path: str | os.PathLike[str], *, prompt: str = "prompt") -> Dataset:
    """Returns the rows of a JSON Lines file; blank lines are skipped.

    Args:
      path: a UTF-8 file with one JSON object per line.
      prompt: the column that holds the prompt; it is renamed to `prompt`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is not a JSON object, the prompt's column is missing, or there are no rows;
        the message names the file and the line.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no dataset file {path}: check the path (a relative one starts at {os.getcwd()})"
        )
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:  # bytes that are not UTF-8 included
            raise ValueError(f"{path}:{number} is not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number} holds a JSON {type(row).__name__}: write one object per line")
        if prompt not in row:
            raise ValueError(f"{path}:{number} has no column {prompt!r}; its columns are {sorted(row)}")
        if prompt != "prompt" and "prompt" in row:
            raise ValueError(f"{path}:{number} has both {prompt!r} and 'prompt': remove or rename one of them")
        rows.append({"prompt": row.pop(prompt), **row})
    if not rows:
        raise ValueError(f"{path} holds no rows: write one JSON object per line")
    try:
        return Dataset(tuple(rows))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

"""Where prompts come from, as a value that any module can offer: the rows, demonstrations and rewards of one task."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from grpo_jax.data.dataset import Dataset, read_jsonl
from grpo_jax.data.settings import DataSettings
from grpo_jax.data.tokenizer import PRINTABLE
from grpo_jax.errors import import_named, problem

Split = tuple[Dataset, Dataset | None]
"""The rows to train on, and those that are held out."""


class Demonstrate(Protocol):
    """`(data, rows, *, seed, wrong) -> completions`: one worked answer for each of the rows.

    seed   numbers that fix what is drawn
    wrong  share of steps that are wrong, where the source makes its demonstrations up
    """

    def __call__(self, data: Dataset, rows: Sequence[int], *, seed: Sequence[int], wrong: float) -> list[str]: ...


def completion_column(data: Dataset, rows: Sequence[int], *, seed: Sequence[int], wrong: float) -> list[str]:
    """Returns the column `completion` of these rows.

    Raises:
      ValueError: there is no such column.
    """
    columns = data.columns(rows)
    if "completion" not in columns:
        raise ValueError(f"the data have no column 'completion' to imitate; they have {', '.join(columns) or 'none'}")
    return columns["completion"]


def _no_problem(settings: DataSettings) -> Iterable[str]:
    return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A task. In a configuration, `data.source: package.module:name` names one.

    Attributes:
      read: `(settings, seed) -> (training rows, held-out rows or None)`.
      check: `(settings) -> problems`, one line each, of the section `data`, before anything is read.
      demonstrate: what the warm-up imitates.
      rewards: the reward functions of a configuration that names none, by their names, each with weight 1.
      alphabet: the characters of its texts, for a tokenizer of characters.
    """

    read: Callable[[DataSettings, int], Split]
    check: Callable[[DataSettings], Iterable[str]] = _no_problem
    demonstrate: Demonstrate = completion_column
    rewards: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)
    alphabet: str = PRINTABLE


def find_source(name: str) -> Source:
    """Returns the source that `data.source` names.

    Raises:
      ValueError: it is none.
    """
    if name.endswith(".jsonl"):
        return JSON_LINES
    if name == "arithmetic":
        name = "grpo_jax.data.arithmetic:ARITHMETIC"
    if ":" not in name:
        expected = "'arithmetic', the path of a .jsonl file, or 'package.module:name'"
        raise ValueError(problem("data.source", name, expected, "set data.source to one"))
    try:
        source = import_named(name)
    except ValueError as error:
        raise ValueError(f"data.source: {error}") from error
    if not isinstance(source, Source):
        raise ValueError(problem("data.source", name, f"a grpo_jax.Source, not a {type(source).__name__}", "make one"))
    return source


def _check_files(settings: DataSettings) -> Iterator[str]:
    if settings.test is not None and not settings.test.endswith(".jsonl"):
        yield problem("data.test", settings.test, "a .jsonl file", "set data.test to one")


def _read_files(settings: DataSettings, seed: int) -> Split:
    """Returns the rows of the files, up to the sizes that are asked for.

    Raises:
      FileNotFoundError: a file is missing; the message says how to fetch it where `url` is known.
    """
    missing = [file for file in (settings.source, settings.test) if file is not None and not Path(file).is_file()]
    if missing and settings.url is not None:
        fetch = "".join(
            f"\n  curl -fL --create-dirs -o {shlex.quote(file)} {shlex.quote(f'{settings.url}/{Path(file).name}')}"
            for file in missing
        )
        raise FileNotFoundError(
            f"there is no dataset file {' and no '.join(missing)}; to fetch what is missing:{fetch}"
        )
    train = _first(read_jsonl(settings.source, prompt=settings.prompt), settings.train_size)
    if settings.test is None:
        return train, None
    return train, _first(read_jsonl(settings.test, prompt=settings.prompt), settings.test_size)


def _first(data: Dataset, size: int | None) -> Dataset:
    return data if size is None else Dataset(data.rows[:size])


JSON_LINES = Source(read=_read_files, check=_check_files)
"""The rows of .jsonl files; their column `completion`, if they have one, holds the demonstrations."""

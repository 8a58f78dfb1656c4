"""The error of a configuration, the one form of its lines, and the import of what it names."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from typing import Any


class ConfigError(ValueError):
    """What is wrong with a configuration: one line per problem, all problems at once."""

    def __init__(self, problems: Iterable[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def problem(path: str, value: object, expected: str, fix: str) -> str:
    """Returns the line that names a field, what it holds, what it may hold and what to do.

    >>> problem("train.minibatches", 3, "a divisor of train.prompts (32)", "choose 2 or 4")
    'train.minibatches: value 3; expected a divisor of train.prompts (32); choose 2 or 4'
    """
    return f"{path}: value {value!r}; expected {expected}; {fix}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the advice for a name that does not exist: the nearest known one, and all of them.

    >>> nearest("promts", ["steps", "prompts"])
    "did you mean 'prompts'? (known: prompts, steps)"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listing = f"known: {', '.join(names)}"
    return f"did you mean {close[0]!r}? ({listing})" if close else listing


def import_named(target: str) -> Any:
    """Returns what `package.module:name` stands for.

    >>> import_named("math:hypot")(3, 4)
    5.0

    Raises:
      ValueError: there is no such module, or it has nothing of that name.
    """
    place, colon, name = target.partition(":")
    if not (place and colon and name):
        raise ValueError(f"cannot import {target!r}: write 'package.module:name'")
    try:
        module = importlib.import_module(place)
    except (ImportError, TypeError, ValueError) as error:
        raise ValueError(f"cannot import {target!r}: {error}; is its folder on PYTHONPATH?") from error
    if not hasattr(module, name):
        known = [key for key in dir(module) if not (key.startswith("_") or inspect.ismodule(getattr(module, key)))]
        raise ValueError(f"{place} has no {name!r}; {nearest(name, known)}")
    return getattr(module, name)

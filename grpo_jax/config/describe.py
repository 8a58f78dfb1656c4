"""What the schema says about a dotted path: the fields that may stand there, and the values a field takes."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic.fields import FieldInfo

from grpo_jax.config.schema import Config


def fields(path: Sequence[str | int]) -> dict[str, Any]:
    """Returns the annotation of each field of the section at `path`.

    >>> sorted(fields(["checkpoint"]))
    ['every', 'keep']
    """
    return _hints(functools.reduce(_step, path, Config))


def known(path: Sequence[str | int]) -> tuple[str | int, ...]:
    """Returns the longest start of `path` that the schema describes.

    >>> known(["objective", "dict[str,any]", "x"])
    ('objective',)
    """
    annotation: Any = Config
    for depth, name in enumerate(path):
        if not _inside(annotation, name):
            return tuple(path[:depth])
        annotation = _step(annotation, name)
    return tuple(path)


def expected(path: Sequence[str | int]) -> str:
    """Returns the values that the field at `path` takes, in words.

    >>> expected(["train", "micro_prompts"])
    'an integer of at least 1, or null'
    """
    return _words(functools.reduce(_step, path, Config))


@functools.cache
def _hints(section: type) -> dict[str, Any]:
    return typing.get_type_hints(section, include_extras=True)


def _inside(annotation: Any, name: str | int) -> bool:
    if dataclasses.is_dataclass(annotation):
        return name in _hints(annotation)
    return typing.get_origin(annotation) is tuple and isinstance(name, int)


def _step(annotation: Any, name: str | int) -> Any:
    return _hints(annotation)[name] if dataclasses.is_dataclass(annotation) else typing.get_args(annotation)[0]


def _words(annotation: Any) -> str:
    if dataclasses.is_dataclass(annotation):
        return f"a mapping with fields {', '.join(_hints(annotation))}"
    arguments = typing.get_args(annotation)
    match typing.get_origin(annotation):
        case typing.Annotated:
            return next(note.description for note in arguments[1:] if isinstance(note, FieldInfo))
        case typing.Literal:
            return " or ".join(map(repr, arguments))
        case typing.Union | types.UnionType:
            return ", or ".join(map(_words, arguments))
        case origin:
            return {str: "text", types.NoneType: "null", dict: "a mapping", tuple: "a list"}[origin or annotation]

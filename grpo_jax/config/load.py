"""YAML and overrides to a checked `Config`, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from grpo_jax.config import describe
from grpo_jax.config.override import override
from grpo_jax.config.schema import Config
from grpo_jax.config.text import parse, write
from grpo_jax.config.validate import validate
from grpo_jax.errors import ConfigError, nearest, problem

FILTERS = ("top_k", "top_p", "min_p")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Returns the configuration in a YAML file, changed by further files and dotted overrides, checked in full.

    Args:
      path: the YAML file.
      overrides: `section.field=value`, the value in YAML, or the path of a YAML file such as a recipe, whose fields
        replace those read before it; later ones win.

    Raises:
      ConfigError: no such file, not YAML, an unknown or missing field, a wrong type, a value out of bounds, or
        fields that contradict each other; one line for each problem.
    """
    tree = _read(path)
    for change in overrides:
        if "=" not in change and change.endswith((".yaml", ".yml")):
            tree = _overlay(tree, _read(change))
        else:
            tree = override(tree, change)
    return from_dict(tree)


def _read(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot read the configuration: {error}; name a YAML file"]) from error
    tree = parse(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError([problem(str(path), tree, "a mapping of sections", "start with `model:`")])
    return tree


def _overlay(tree: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Returns a tree whose sections have the fields of `over` replaced; the objective is replaced as a whole."""
    merged = dict(tree)
    for name, value in over.items():
        section = tree.get(name)
        together = isinstance(section, dict) and isinstance(value, dict) and name != "objective"
        merged[name] = {**section, **value} if together else value
    return merged


def from_dict(tree: dict[str, Any]) -> Config:
    """Returns the checked configuration that nested mappings describe: the inverse of `to_dict`.

    Raises:
      ConfigError: as `load`.
    """
    try:
        config = TypeAdapter(Config).validate_python(tree)
    except ValidationError as error:
        raise ConfigError(_lines(error)) from error
    validate(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the configuration as nested mappings and lists of YAML scalars, every default written out."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    """Returns a value with lists in place of tuples, as YAML has them."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def dump(config: Config) -> str:
    """Returns the configuration as YAML that loads back to an equal one."""
    return write(to_dict(config))


def _lines(error: ValidationError) -> Iterable[str]:
    """Returns one line per field; the members of a union that all failed are one problem of one field."""
    return dict.fromkeys(_line(details) for details in error.errors())


def _line(details: ErrorDetails) -> str:
    location, kind, value = details["loc"], details["type"], details["input"]
    path = ".".join(map(str, location))
    if kind == "value_error":  # what a section says of its fields, which begins with the field's name
        return f"{path}.{details['ctx']['error']}" if path else str(details["ctx"]["error"])
    known = describe.known(location)
    if kind == "missing":
        return f"{path}: missing; expected {describe.expected(known)}; set {path}=..."
    if len(known) < len(location) and kind in ("unexpected_keyword_argument", "invalid_key"):
        if location[0] == "sampling" and location[-1] in FILTERS:
            return problem(path, value, "no filter in training", f"remove it, or set eval.{location[-1]}")
        return f"{path}: unknown field; {nearest(str(location[-1]), describe.fields(known))}"
    path = ".".join(map(str, known))
    return problem(path, value, describe.expected(known), f"set {path}=...")

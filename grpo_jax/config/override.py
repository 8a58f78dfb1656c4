"""Dotted overrides: `train.prompts=16` on the command line changes one place of the YAML."""

from __future__ import annotations

from typing import Any

from grpo_jax.config.text import parse
from grpo_jax.errors import ConfigError, problem


def override(tree: dict[str, Any], assignment: str) -> dict[str, Any]:
    """Returns `tree` with one place changed as `a.b=value` says; the value is YAML, missing mappings are made.

    A number in the path is an index into a list. A field below an `objective` that names a preset replaces
    that field of the preset.

    >>> override({"rewards": [{"function": "f"}]}, "rewards.0.weight=1e-1")
    {'rewards': [{'function': 'f', 'weight': 0.1}]}
    >>> override({"objective": "grpo"}, "objective.kl_coef=0")
    {'objective': {'preset': 'grpo', 'kl_coef': 0}}

    Raises:
      ConfigError: no `=`, a value that is not YAML, or a path through something that has no fields.
    """
    path, equals, text = assignment.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise ConfigError([problem("override", assignment, "section.field=value", "write it like train.steps=100")])
    return _replace(tree, [], names, parse(text, f"override {assignment!r}"))


def _replace(place: Any, path: list[str], names: list[str], value: Any) -> Any:
    """Returns `place`, which stands at `path`, with what `names` lead to replaced; nothing is mutated."""
    if not names:
        return value
    name, *rest = names
    inner = [*path, name]
    match place:
        case None:
            return {name: _replace(None, inner, rest, value)}
        case dict():
            return place | {name: _replace(place.get(name), inner, rest, value)}
        case list() if name.isdecimal() and int(name) < len(place):
            index = int(name)
            return [*place[:index], _replace(place[index], inner, rest, value), *place[index + 1 :]]
        case str() if path == ["objective"]:
            return {"preset": place, name: _replace(None, inner, rest, value)}
        case list():
            expected = f"an index below {len(place)} in place of {name!r}"
        case _:
            expected = f"a mapping that can hold {name!r}"
    where = ".".join(path)
    raise ConfigError([problem(where, place, expected, f"set the whole of it: {where}=...")])

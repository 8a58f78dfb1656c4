"""YAML 1.2 in and out: `off` is text, `1e-6` is a number, and a key that stands twice is an error."""

from __future__ import annotations

import io
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from grpo_jax.errors import ConfigError


def parse(text: str, name: str) -> Any:
    """Returns what the YAML says; `name` tells where it stands, for the error.

    >>> parse("{a: off, b: 1e-6}", "example")
    {'a': 'off', 'b': 1e-06}

    Raises:
      ConfigError: the text is not one YAML document, or a mapping has a key twice.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError([f"{name}: not valid YAML{at}: {error.problem}"]) from error
    except YAMLError as error:
        raise ConfigError([f"{name}: not valid YAML: {' '.join(str(error).split())}"]) from error


def write(tree: Any) -> str:
    """Returns YAML that `parse` reads back as an equal tree, keys in their own order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    stream = io.StringIO()
    yaml.dump(tree, stream)
    return stream.getvalue()

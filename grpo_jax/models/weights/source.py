"""What a model directory says it holds: its config.json, family and configuration, before any weight is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.families import FAMILIES, Family
from grpo_jax.models.weights.files import read_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model directory.

    Attributes:
      directory: where it is.
      raw: the fields of its config.json.
      family: the one that reads them.
      config: what they describe; `dataclasses.replace` sets what they do not know, such as `dtype` and `remat`.
    """

    directory: Path
    raw: dict[str, Any]
    family: Family
    config: DecoderConfig

    @property
    def names(self) -> dict[str, str]:
        """Returns the tensors' names by leaf, as `load` takes them."""
        return self.family.names(self.config)


def read_source(directory: str | Path, families: Mapping[str, Family] = FAMILIES) -> ModelSource:
    """Returns what a model directory holds, by its config.json.

    Raises:
      FileNotFoundError: there is no config.json.
      ValueError: the model needs code of its own, is quantised, or is of a family that is not known; or a field that
        its family refuses. The message names the file.
    """
    file = Path(directory) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: a model directory holds config.json, weights and a tokenizer")
    raw = read_json(file)
    if "auto_map" in raw:
        raise ValueError(f"{file} has 'auto_map': this model needs code of its own, which is never run")
    if raw.get("quantization_config") is not None:
        raise ValueError(f"{file} has 'quantization_config': the weights are quantised; take the model they came from")
    kind, architectures = raw.get("model_type"), raw.get("architectures")
    family = families.get(kind) if isinstance(kind, str) else None
    known = ", ".join(f"{name} ({family.architecture})" for name, family in families.items())
    if family is None:
        # A model that also sees images holds its text model's fields in a mapping of their own.
        text = f"; of such models only the text model is read, saved by itself as '{kind}_text'"
        hint = text if f"{kind}_text" in families else ""
        raise ValueError(f"{file}: model_type is {kind!r}, which is not known{hint}; known are {known}")
    if architectures not in (None, []) and (
        not isinstance(architectures, list) or family.architecture not in architectures
    ):
        raise ValueError(
            f"{file}: architectures is {architectures!r}, which is not known for {family.name!r}; known are {known}"
        )
    try:
        config = family.read(raw)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return ModelSource(directory=Path(directory), raw=raw, family=family, config=config)


def fitting_family(config: DecoderConfig, families: Mapping[str, Family] = FAMILIES) -> Family:
    """Returns the first family whose config.json can say all of `config`: for a model that began without a file.

    Raises:
      ValueError: there is none; the message has every family's reason.
    """
    reasons = []
    for family in families.values():
        try:
            family.write(config)
        except ValueError as error:
            reasons.append(f"\n  {error}")
        else:
            return family
    raise ValueError(f"no family has a model like this one:{''.join(reasons)}")

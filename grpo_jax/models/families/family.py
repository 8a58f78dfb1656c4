"""What is known of a family: how its config.json becomes a `DecoderConfig` and back, and its tensors' names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from grpo_jax.models.config import HOW, DecoderConfig
from grpo_jax.models.families.names import tensor_names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models.

    Attributes:
      name: `model_type` in config.json.
      architecture: the class that transformers gives its language model.
      read: config.json's fields -> configuration. Raises a ValueError that names a field which is missing, or whose
        value changes the numbers in a way that the decoder does not know.
      fields: configuration -> the fields of config.json that decide the numbers, not yet checked.
    """

    name: str
    architecture: str
    read: Callable[[dict[str, Any]], DecoderConfig]
    fields: Callable[[DecoderConfig], dict[str, Any]]

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """Returns the fields of config.json that decide the numbers, rotary ones in both styles; `read` inverts it.

        Raises:
          ValueError: this family has no field for something that the configuration has.
        """
        fields = self.fields(config)
        back = dataclasses.replace(self.read(fields), **{name: getattr(config, name) for name in HOW})
        lost = [f.name for f in dataclasses.fields(config) if getattr(back, f.name) != getattr(config, f.name)]
        if lost:
            values = ", ".join(f"{name}={getattr(config, name)!r}" for name in lost)
            raise ValueError(f"config.json of {self.name!r} cannot say {values}; choose the family that has it")
        return fields

    def names(self, config: DecoderConfig) -> dict[str, str]:
        """Returns the checkpoint's tensor name of every leaf, by its dotted path; `{layer}`, `{expert}` stand open."""
        return tensor_names(config)

"""What a setting may be: the types of fields, with their bounds in words, and the dataclasses that hold them.

A section of the configuration is a frozen dataclass, declared by `@settings` in the folder whose code reads it
(`models/settings.py`, `learn/settings.py`, ...); `config` composes the sections and checks them against each other.
An int is accepted where a number is expected and becomes a float; a bool is no number; text is never converted.
Nothing here imports JAX, and no module of settings does.
"""

from __future__ import annotations

from typing import Annotated, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, JsonValue
from pydantic.dataclasses import dataclass

T = TypeVar("T")

Whole = Annotated[int, Field(strict=True, ge=0, description="an integer of at least 0")]
Count = Annotated[int, Field(strict=True, ge=1, description="an integer of at least 1")]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, description="a finite number")]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False, description="a number of at least 0")]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False, description="a number above 0")]
Share = Annotated[float, Field(strict=True, ge=0, le=1, description="a number from 0 to 1")]
PositiveShare = Annotated[float, Field(strict=True, gt=0, le=1, description="a number above 0, at most 1")]
Decay = Annotated[float, Field(strict=True, ge=0, lt=1, description="a number from 0 up to, not including, 1")]
Flag = Annotated[bool, Field(strict=True, description="true or false")]
Text = Annotated[str, Field(strict=True, min_length=1, description="text that is not empty")]
VARIABLES = "a mapping of names to text (a date in quotes), numbers, true, false, null, lists or mappings"
Variables = Annotated[dict[Text, JsonValue], Field(strict=True, description=VARIABLES)]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(section: type[T]) -> type[T]:
    """Returns the class as a frozen, keyword-only dataclass that checks the types and bounds of its fields.

    Raises:
      pydantic.ValidationError: (when an instance is made) an unknown field, a wrong type or a value out of bounds.
    """
    return dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))(section)

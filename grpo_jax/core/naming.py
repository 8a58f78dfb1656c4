"""Printing by value: a component that is a function is shown by its name, not by its address."""

from __future__ import annotations

import dataclasses
import types
from typing import Any


class PrintsByValue:
    """Gives a dataclass declared with `repr=False` a text that is the same in every process.

    >>> @dataclasses.dataclass(frozen=True, repr=False)
    ... class Term(PrintsByValue):
    ...     function: Any
    ...     weight: float = 1.0
    >>> Term(len)
    Term(function=len, weight=1.0)
    """

    def __repr__(self) -> str:
        assert dataclasses.is_dataclass(self)
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shown = ", ".join(f"{name}={show(value)}" for name, value in values.items())
        return f"{type(self).__name__}({shown})"


def show(value: Any) -> str:
    """Returns the name of a function or a method, and the text of anything else.

    >>> show(len), show(0.5)
    ('len', '0.5')
    """
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodType):
        return value.__qualname__
    return repr(value)

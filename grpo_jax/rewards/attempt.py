"""One call of a reward function, whose every possible end is a plain value: what runs inside a worker."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Steps = list[tuple[int, float]]
Value = float | Steps | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call ended; exactly one field is set.

    Only plain types: an exception object that cannot be unpickled would take the whole pool down.
    """

    values: list[Value] | None = None
    raised: str | None = None
    """The traceback, or why there is none. It may be the fault of one completion."""
    invalid: str | None = None
    """How the returned value breaks the contract. It is the fault of the function."""


class _Invalid(Exception):
    """The function returned something that no reward may return."""


def attempt(
    function: Callable[..., Any],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> Outcome:
    """Returns the outcome of `function(prompts, completions, **columns)`, awaited if it is a coroutine."""
    try:
        result = function(list(prompts), list(completions), **{name: list(column) for name, column in columns.items()})
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        return Outcome(values=_values(result, len(completions)))
    except _Invalid as error:
        return Outcome(invalid=str(error))
    except (Exception, SystemExit) as error:  # sys.exit() in a reward must not end the training
        return Outcome(raised="".join(traceback.format_exception(error)))


def prepare(functions: Sequence[Callable[..., Any]]) -> None:
    """Returns nothing: keeps a worker off the accelerator. Unpickling `functions` imported their modules.

    So the deadline of the first call does not pay for imports, and a module that cannot be imported is found at
    the start.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # it has read the environment already
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def _values(result: Any, count: int) -> list[Value]:
    if isinstance(result, (str, bytes, dict)) or not hasattr(result, "__iter__"):
        raise _Invalid(f"returned {_show(result)}: return a list with one value per completion")
    values = list(result)
    if len(values) != count:
        raise _Invalid(f"returned {len(values)} values for {count} completions: return one per completion, in order")
    return [_value(value) for value in values]


def _value(value: Any) -> Value:
    if isinstance(value, (list, tuple)):
        steps = [_step(step) for step in value]
        return [step for step in steps if not math.isnan(step[1])] or None
    number = math.nan if value is None else _number(value)
    return None if math.isnan(number) else number


def _step(step: Any) -> tuple[int, float]:
    if not isinstance(step, (list, tuple)) or len(step) != 2:
        raise _Invalid(f"returned the step {_show(step)}: give pairs (end position, value)")
    end = _number(step[0])
    if end != int(end) or end < 0:
        raise _Invalid(f"returned a step that ends at {_show(step[0])}: give the number of characters through its end")
    return int(end), _number(step[1])


def _number(value: Any) -> float:
    if isinstance(value, (str, bytes)):
        raise _Invalid(f"returned {_show(value)}: return a number, None, or a list of (end position, value)")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _Invalid(f"returned {_show(value)}: return a number, None, or a list of (end position, value)") from None
    if math.isinf(number):
        raise OverflowError(f"the reward is {number}: an infinite reward has no advantage")
    return number


def _show(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"

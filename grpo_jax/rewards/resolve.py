"""Reward functions by name, as a configuration file writes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from grpo_jax.errors import import_named, nearest
from grpo_jax.rewards import arithmetic, gsm8k

_LIBRARY = {
    f"{module.__name__.rpartition('.')[2]}.{name}": function
    for module in (arithmetic, gsm8k)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_")
}


def resolve(target: str) -> Callable[..., Any]:
    """Returns the function that `target` names: `package.module:function`, or one of this package's.

    >>> resolve("arithmetic.answer").__module__
    'grpo_jax.rewards.arithmetic'
    >>> resolve("math:hypot")(3, 4)
    5.0

    Raises:
      ValueError: there is no such reward, module or function, or it cannot be called.
    """
    if ":" not in target:
        if target not in _LIBRARY:
            raise ValueError(
                f"reward {target!r} is unknown; {nearest(target, _LIBRARY)}; or write 'package.module:function'"
            )
        return _LIBRARY[target]
    try:
        function = import_named(target)
    except ValueError as error:
        raise ValueError(f"reward: {error}") from error
    if not callable(function):
        raise ValueError(f"reward {target!r} is a {type(function).__name__}: name a function")
    return function

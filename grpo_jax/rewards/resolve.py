"""Reward functions by name, as a configuration file writes them."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

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
                f"reward {target!r} is unknown{_nearest(target, _LIBRARY)}; "
                f"there are {sorted(_LIBRARY)}, or write 'package.module:function'"
            )
        return _LIBRARY[target]
    path, _, name = target.partition(":")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise ValueError(f"reward {target!r}: {error} (is its folder on PYTHONPATH?)") from error
    if not hasattr(module, name):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise ValueError(f"reward {target!r}: module {path!r} has no {name!r}{_nearest(name, known)}")
    function = getattr(module, name)
    if not callable(function):
        raise ValueError(f"reward {target!r} is a {type(function).__name__}: name a function")
    return function


def _nearest(name: str, known: Any) -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""

"""Packages whose names are imported when they are first used.

Settings are checked, and reward workers run, without JAX; a package that exported everything at once would import it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def exports(
    package: str, modules: Mapping[str, tuple[str, ...]]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Returns `__all__`, `__getattr__` and `__dir__` of a package.

    Args:
      package: its name.
      modules: the names that each module defines. No name may be that of a module of the package, which hides it.
    """
    home = {name: module for module, names in modules.items() for name in names}
    names = sorted(home)

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(names)}")
        return getattr(importlib.import_module(home[name]), name)

    return names, get, lambda: names

"""What `grpo_jax.core` exports: every term and preset, each name for one thing."""

import importlib
import inspect
import pkgutil
import re
import typing
from pathlib import Path

import pytest

from grpo_jax import core

PLACES = ("advantage", "aggregate", "correction", "kl", "presets", "ratio", "shaping", "surrogate", "unified", "value")
MODULES = [module.name for module in pkgutil.walk_packages(core.__path__, "grpo_jax.core.")]


def public(name):
    """The names that a package lists, or the functions and classes that a file defines."""
    module = importlib.import_module(f"grpo_jax.core.{name}")
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__}
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__
    }


@pytest.mark.parametrize("place", PLACES)
def test_every_term_of_a_place_is_exported(place):
    offered = public(place)
    assert offered
    assert {name: getattr(core, name) for name in offered if name in core.__all__} == offered


def test_every_row_of_the_table_is_exported():
    text = (Path(core.__file__).parent / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)`[^|]*\|.*\.py` \|$", text, flags=re.MULTILINE)
    assert len(rows) > 60
    assert [name for name in rows if name not in core.__all__] == []


def test_every_protocol_of_a_slot_is_exported():
    found = public("slots").items()
    protocols = [name for name, value in found if inspect.isclass(value) and typing.Protocol in value.__bases__]
    assert len(protocols) == 8
    assert set(protocols) <= set(core.__all__)


def test_a_name_means_one_thing():
    """No export has the name of a module, where an import would hide one of the two."""
    modules = {name.rsplit(".", 1)[1] for name in MODULES}
    assert {"kl", "surrogate", "full_vocabulary", "clip"} <= modules
    assert modules & set(core.__all__) == set()
    assert [name for name in core.__all__ if inspect.ismodule(getattr(core, name))] == []


def test_two_modules_do_not_define_one_exported_name():
    homes = {}
    for module in MODULES:
        defined = vars(importlib.import_module(module)).items()
        for name, value in defined:
            if name in core.__all__ and getattr(value, "__module__", None) == module:
                homes.setdefault(name, []).append(module)
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def test_the_list_is_sorted_and_without_repetition():
    assert sorted(set(core.__all__)) == core.__all__

"""The table of terms: every component has a row, and every row a test that exists."""

import re
from pathlib import Path

import pytest

from grpo_jax.core import (
    advantage,
    aggregate,
    control,
    correction,
    kl,
    preference,
    presets,
    ratio,
    robust,
    shaping,
    surrogate,
    unified,
    value,
)
from grpo_jax.core.slots import OFFERS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "grpo_jax" / "core" / "README.md").read_text()
ROWS = [line for line in TEXT.splitlines() if re.match(rf"\| `(?!({'|'.join(OFFERS)})`)", line)]
SLOTS = (advantage, correction, kl, surrogate, presets)


def public(module):
    """The functions and classes that a file defines, or what a package lists."""
    if hasattr(module, "__all__"):
        return module.__all__
    defined = (value for name, value in vars(module).items() if not name.startswith("_") and callable(value))
    return [value.__name__ for value in defined if getattr(value, "__module__", None) == module.__name__]


@pytest.mark.parametrize("module", [*SLOTS, aggregate, ratio, unified, shaping], ids=lambda m: m.__name__)
def test_every_component_is_in_the_table(module):
    assert [name for name in public(module) if f"`{name}`" not in TEXT] == []


@pytest.mark.parametrize("name", ["AdaptiveKl", "AdaptiveEntropy", "mixed_reference", "ClippedValue", "Dpo", "Ipo"])
def test_what_is_no_slot_is_in_the_table_too(name):
    assert any(hasattr(module, name) for module in (control, value, preference, robust))
    assert f"`{name}`" in TEXT


def test_every_row_names_tests_that_exist():
    assert len(ROWS) > 50
    for row in ROWS:
        (name,) = re.findall(r"`([\w/]+\.py)` \|$", row)
        path = ROOT / "tests" / "core" / name
        assert path.exists(), row
        term = re.match(r"\| `(\w+)`", row)[1]
        assert term in re.findall(r"\w+", path.read_text()), row


def test_the_table_of_slots_is_that_of_the_code():
    """Every slot but `surrogate.select`, which the row of `surrogate` mentions, and every name that it offers."""
    rows = re.findall(r"^\| `(\w+)` \| `([\w, ]+)`[^|]*\|(.*)\|$", TEXT, flags=re.MULTILINE)
    table = {slot: re.findall(r"`(\w+)`", names) for slot, _, names in rows if slot in OFFERS}
    table["surrogate"].remove("select")
    assert table == {slot: list(names) for slot, names in OFFERS.items() if "." not in slot}

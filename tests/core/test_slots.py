import dataclasses
from functools import partial

import pytest

from grpo_jax.core import GroupNormalised, ProcessNormalised, k3
from grpo_jax.core.slots import asks, fill


def plain(x, y):
    return x, y


def more(x, *, mask, eps=0.1):
    return x, mask, eps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    scale: float = 1.0

    def __call__(self, x, *, mask, value):
        return x, mask, value


@pytest.mark.parametrize(
    ("component", "names"),
    [
        (None, ()),
        (plain, ()),
        (more, ("mask",)),
        (Component(), ("mask", "value")),
        (partial(more, mask=1), ()),
        (k3, ()),
        (GroupNormalised(), ()),
        (ProcessNormalised(), ("step_reward", "step_end", "step_valid", "mask")),
    ],
)
def test_a_component_asks_by_its_signature(component, names):
    """A keyword with a default is a hyperparameter, not a question."""
    assert asks(component) == names


def test_what_is_asked_for_is_filled_in_and_nothing_else():
    assert fill("surrogate", more, {"mask": 3, "value": 4}) == {"mask": 3}
    assert fill("surrogate", plain, {"mask": 3}) == {}


@pytest.mark.parametrize(
    ("available", "message"),
    [
        ({"mask": 3, "value": None}, r"advantage=Component\(scale=1.0\) asks for value, .* there is mask$"),
        ({}, r"asks for mask, value, which is not given here; there is nothing$"),
    ],
)
def test_what_is_missing_is_named(available, message):
    with pytest.raises(ValueError, match=message):
        fill("advantage", Component(), available)

import dataclasses
import inspect
import re
import typing
from functools import partial

import numpy as np
import pytest

from grpo_jax.core import GroupNormalised, Objective, ProcessNormalised, advantage, correction, k3, kl, slots, surrogate
from grpo_jax.core.correction import Chained, TokenTruncated
from grpo_jax.core.slots import OFFERS, asks, fill, require_offered


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


PROTOCOLS = {
    "advantage": slots.Advantage,
    "ratio": slots.Ratio,
    "surrogate": slots.Surrogate,
    "surrogate.select": slots.Select,
    "correction": slots.Correction,
    "kl": slots.Kl,
    "aggregate": slots.Aggregate,
    "value": slots.Value,
}


def test_every_slot_has_an_offer_and_is_the_annotation_of_its_field():
    assert OFFERS.keys() == PROTOCOLS.keys()
    hints = typing.get_type_hints(Objective)
    for slot in PROTOCOLS.keys() - {"surrogate.select"}:
        assert PROTOCOLS[slot] in (hints[slot], *typing.get_args(hints[slot])), slot


@pytest.mark.parametrize("slot", PROTOCOLS)
def test_the_docstring_of_a_slot_lists_what_it_offers(slot):
    """Each with its type, axes and meaning, and nothing else."""
    _, _, listed = inspect.getdoc(PROTOCOLS[slot]).partition("\nMay ask for:\n")
    lines = re.findall(r"^ *(\w+): (\w+) \[(.*)\], (.+)\.$", listed, flags=re.MULTILINE)
    assert [tuple(line) for line in lines] == [(name, *offer) for name, offer in OFFERS[slot].items()]
    if not lines:
        assert listed.strip() == "nothing more."


@pytest.mark.parametrize("slot", PROTOCOLS)
def test_what_a_slot_offers_has_a_type_and_known_axes(slot):
    for name, (dtype, axes, _) in OFFERS[slot].items():
        assert dtype == "key" or np.dtype(dtype), name
        assert set(axes.split()) <= {"...", "G", "T", "K"}, name


@pytest.mark.parametrize(("slot", "module"), [("advantage", advantage), ("correction", correction), ("kl", kl)])
def test_everything_that_a_slot_offers_is_read_by_a_term(slot, module):
    """But for the mask, which `kl` offers to a user's own term."""
    terms = [getattr(module, name) for name in module.__all__]
    read = {name for term in terms for name in asks(term.__call__ if isinstance(term, type) else term)}
    assert read | ({"mask"} if slot == "kl" else set()) == OFFERS[slot].keys()


def test_every_term_of_a_surrogate_asks_for_what_its_slot_offers():
    read, selects = set(), set()
    for term in (getattr(surrogate, name) for name in surrogate.__all__):
        if isinstance(term, type):
            read |= set(asks(term.__call__))
            selects |= set(asks(getattr(term, "select", None)))
    assert read == OFFERS["surrogate"].keys()
    assert selects == OFFERS["surrogate.select"].keys()


def test_a_part_of_a_chain_is_refused_as_a_correction_is():
    def greedy(log_gap, mask, *, reward):
        return log_gap, mask

    with pytest.raises(
        ValueError, match=r"correction=.*greedy asks for reward; this slot offers logp, sampler_logp, adv"
    ):
        Chained(corrections=(TokenTruncated(), greedy))
    require_offered("correction", Chained(corrections=(TokenTruncated(),)))


def test_what_cannot_be_called_is_no_component():
    with pytest.raises(ValueError, match=r"kl=0.1 cannot be called; a component is a function or has a __call__"):
        Objective(kl=0.1)

"""The one page learns, and with a flipped sign it does not; the ablation beside it compares two gradients."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "experiments" / "one_page"


@pytest.fixture(scope="module")
def page():
    """Returns a function that imports a script of the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PAGE))
        yield importlib.import_module
    for name in ("train", "ablation"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def imitator(page):
    """A policy that has imitated, and the problems that it goes on with."""
    train = page("train")
    data, _ = train.make_split(0, train=10_000, test=0, operations=1, digits=2)
    return train.imitate(train.init(train.MODEL, train.jax.random.key(0)), data, 400), data


@pytest.mark.parametrize(("name", "lines"), [("train", 120), ("ablation", 60)])
def test_it_is_one_page_of_public_names_without_a_class(name, lines):
    text = (PAGE / f"{name}.py").read_text()
    assert len(text.splitlines()) <= lines
    assert "class " not in text
    assert "._" not in text


def test_the_reward_rises(page, imitator):
    """By 0.1, from the mean of the first three steps to that of the last three of 15."""
    rewards = page("train").reinforce(*imitator, 15)
    assert np.mean(rewards[-3:]) - np.mean(rewards[:3]) > 0.1


def test_with_a_flipped_sign_the_reward_falls(page, imitator, monkeypatch):
    train = page("train")
    graded = train.GRADE
    monkeypatch.setattr(train, "GRADE", lambda *arguments: -graded(*arguments))
    rewards = train.reinforce(*imitator, 15)
    assert np.mean(rewards[-3:]) - np.mean(rewards[:3]) < -0.1


def test_two_objectives_on_the_same_completions_differ_a_little(page):
    assert 0.9 < page("ablation").main() < 0.9999

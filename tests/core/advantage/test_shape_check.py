"""Whether an advantage can be computed, asked of its shapes alone."""

import jax.numpy as jnp
import pytest

from grpo_jax.core import advantage
from grpo_jax.core.advantage.shape_check import check_advantage


@pytest.mark.parametrize("name", advantage.__all__)
def test_every_advantage_can_be_computed_from_what_its_slot_offers(name):
    component = getattr(advantage, name)
    if isinstance(component, type):
        component = component(k=2) if name == "PassAtK" else component()
    check_advantage(component, group=4)


def test_a_group_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match=r"a group of 2; this advantage compares at least 3 completions"):
        check_advantage(advantage.PassAtK(k=3), group=2)


def test_an_unknown_name_is_refused_with_those_that_there_are():
    def strange(reward, valid, *, length):
        return reward / length

    with pytest.raises(
        ValueError, match=r"advantage=.*strange asks for length; this slot offers mask, token_reward, val"
    ):
        check_advantage(strange, group=4)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 4, 2), (4, 2)])
def test_another_shape_than_that_of_completions_or_tokens_is_refused(shape):
    def flat(reward, valid):
        return jnp.zeros(shape)

    with pytest.raises(ValueError, match=r"flat returns .*; expected the shape \[P, G\] or \[P, G, T\]"):
        check_advantage(flat, group=4)

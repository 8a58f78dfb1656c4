import dataclasses
import inspect

import pytest

from grpo_jax.core import (
    GroupNormalised,
    Objective,
    PpoClip,
    deepseek_r1,
    grpo,
    k3,
    per_sequence,
    per_token,
    ppo_clip,
    presets,
    reinforce,
    sequence_mean,
    sft,
    token_mean,
)

GROUP = GroupNormalised(ddof=1, eps=1e-6)
PUBLISHED = {
    grpo: Objective(
        advantage=GROUP,
        ratio=per_token,
        surrogate=PpoClip(low=0.2, high=0.2),
        kl=k3,
        kl_coef=0.04,
        aggregate=sequence_mean,
    ),
    deepseek_r1: Objective(
        advantage=GROUP,
        ratio=per_sequence,
        surrogate=PpoClip(low=10, high=10),
        kl=k3,
        kl_coef=0.001,
        aggregate=sequence_mean,
    ),
    ppo_clip: Objective(
        advantage=GROUP, ratio=per_token, surrogate=PpoClip(low=0.2, high=0.2), aggregate=sequence_mean
    ),
    sft: Objective(advantage=None, surrogate=reinforce, aggregate=token_mean),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_published_numbers(preset):
    assert preset() == PUBLISHED[preset]


def test_every_preset_is_covered_and_names_its_source():
    made = {f for _, f in inspect.getmembers(presets, inspect.isfunction) if f.__annotations__["return"] == "Objective"
            and f.__module__ == presets.__name__}  # fmt: skip
    assert made == set(PUBLISHED)
    assert all("arXiv:" in preset.__doc__ for preset in made)


def test_bounds_are_an_ablation_of_grpo():
    expected = dataclasses.replace(grpo(), surrogate=PpoClip(low=0.1, high=0.28), kl_coef=0.0)
    assert ppo_clip(low=0.1, high=0.28) == expected
    with pytest.raises(ValueError, match="low must be a finite number >= 0"):
        ppo_clip(low=-1.0)

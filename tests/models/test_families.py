"""Every family against transformers' own model: the same weights, the same texts, the same numbers."""

import dataclasses

import pytest

from tests.models.golden import compare
from tests.models.golden.variants import VARIANTS


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_log_probabilities_are_those_of_transformers(name):
    found = compare.figures(name)
    assert found.logit < 1e-4
    assert found.logp < 1e-4


@pytest.mark.parametrize("name", VARIANTS)
def test_the_gradient_of_every_tensor_is_that_of_transformers(name):
    found = compare.figures(name)
    assert found.gradient < 1e-4, found.worst


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_tokens_are_those_of_transformers(name):
    assert compare.figures(name).greedy == 1


YARN, LLAMA3 = (compare.described(name)[1].rope_scaling for name in ("qwen2_yarn", "llama3"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("qwen2_window", {"window": 7}),
        ("qwen2_window", {"local": (True, True, True)}),
        ("qwen2_yarn", {"rope_scaling": dataclasses.replace(YARN, beta_fast=4.0)}),
        ("qwen2_yarn", {"rope_scaling": dataclasses.replace(YARN, beta_slow=0.25)}),
        ("qwen2_yarn", {"rope_scaling": dataclasses.replace(YARN, truncate=False)}),
        ("llama3", {"rope_scaling": dataclasses.replace(LLAMA3, low_freq_factor=0.9)}),
        ("llama3", {"rope_scaling": dataclasses.replace(LLAMA3, high_freq_factor=5.0)}),
        ("mistral", {"window": 5}),
        ("gemma2", {"attention_cap": 3.0}),
        ("gemma2", {"final_cap": 2.0}),
        ("gemma2", {"query_scalar": 7.0}),
        ("gemma2", {"activation": "silu"}),
        ("gemma3", {"local_rope_theta": 1e6}),
        ("gemma3", {"rope_scaling": None}),
        ("qwen3_moe", {"normalised_routing": False}),
    ],
    ids=str,
)
def test_a_golden_file_notices_a_feature_that_is_a_little_off(name, change):
    assert compare.logit_difference(name, **change) > 5e-3

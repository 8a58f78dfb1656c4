"""Every family against transformers' own model: the same weights, the same texts, the same numbers."""

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

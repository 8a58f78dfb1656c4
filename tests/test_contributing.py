"""The worked example of CONTRIBUTING runs, and its term trains in place of another."""

import dataclasses
import re
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from grpo_jax.core import grpo
from grpo_jax.core.advantage.shape_check import check_advantage

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


def test_the_example_of_a_new_term_runs():
    names = {}
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", TEXT, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        exec(textwrap.dedent(block), names)
    term = names["median_centred"]
    check_advantage(dataclasses.replace(grpo(), advantage=term).advantage, group=4)
    np.testing.assert_array_equal(term(jnp.array([1.0, 5.0]), jnp.array([True, True])), [-2.0, 2.0])

"""The example of the README: `core` alone, in a loop of flax and optax."""

import contextlib
import io
import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "README.md").read_text().partition("## The mathematics alone")[2]
LOOP = re.search(r"^```python\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)[1]


def rewards(code):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {})
    return [float(x) for x in re.findall(r"step +\d+: ([0-9.]+) of", out.getvalue())]


def test_the_loop_is_short_and_complete():
    lines = [line for line in LOOP.splitlines() if line.strip()]
    assert len(lines) <= 30
    assert all(len(line) <= 120 for line in lines)
    assert re.findall(r"from grpo_jax\S* import", LOOP) == ["from grpo_jax.core import"]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_loop_learns_and_with_the_opposite_sign_does_not(sign):
    """One token in twelve repeats the prompt by chance."""
    code = LOOP if sign > 0 else LOOP.replace("return policy_loss(", "return -policy_loss(")
    assert (code == LOOP) == (sign > 0)
    first, *_, last = rewards(code)
    assert first < 0.15
    assert last > 0.7 if sign > 0 else last < 0.15

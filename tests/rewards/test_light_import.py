"""Worker processes import the host side, so it must not bring JAX along."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["grpo_jax.rewards", "grpo_jax.data", "grpo_jax.data.arithmetic"])
def test_the_host_side_does_not_import_jax(module):
    code = f"import sys, {module}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

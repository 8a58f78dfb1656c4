import jax
import numpy as np
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def float64():
    """Runs a test in double precision, where a numerical gradient means something."""
    with jax.enable_x64(True):
        yield

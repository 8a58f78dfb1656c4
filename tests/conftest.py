"""Eight virtual devices for the tests of the mesh, and one cache of compiled programs for the whole suite."""

import atexit
import gc
import os
import shutil
import tempfile

import pytest
from hypothesis import settings

# What passes once passes again; `--hypothesis-profile=default` draws new examples.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# Before the first import of JAX: these are read once. Commands that tests start inherit them.
# Tests are about numbers, not speed: the lower level of the backend halves the time that it compiles.
flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1"
os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Most of the suite's time is compilation, and many tests compile the same program.
    cache = tempfile.mkdtemp(prefix="grpo_jax-compiled-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


def pytest_make_parametrize_id(val):
    """A function is called by its name: its address would differ between the processes that share the tests."""
    return getattr(val, "__name__", None) if " at 0x" in repr(val) else None


@pytest.fixture(scope="module", autouse=True)
def programs_are_freed():
    """Every compiled program holds memory maps, of which the kernel grants a process 65,530: then it crashes."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture
def double(monkeypatch):
    """Runs a test in double precision throughout."""
    import jax
    import jax.numpy as jnp

    monkeypatch.setattr(jnp, "float32", jnp.float64)
    with jax.enable_x64(True):
        yield

"""`jit` with the compiler options that were measured to be faster, and a place for what it has compiled."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}
"""On a CPU only products go to the YNNPACK library: its reductions, the default too, made an update 1.8 times slower
(measured with jaxlib 0.10.2; experiments/benchmark/README.md)."""


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Returns `jax.jit(function, **options)` with this backend's compiler options.

    The backend is asked at the first call, not at import: multi-host start must come before it.
    """

    @functools.cache
    def jitted() -> Callable[..., Any]:
        return jax.jit(function, compiler_options=_compiler_options(), **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return jitted()(*args, **kwargs)

    call.jitted = jitted
    return call


@functools.cache
def _compiler_options() -> dict[str, str]:
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=CPU_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:  # a release of XLA without this option
        return {}
    return CPU_OPTIONS


@contextlib.contextmanager
def programs_in(directory: Path) -> Iterator[None]:
    """Keeps compiled programs in a directory, and takes those from it that are there already.

    Where JAX has a directory for them (`JAX_COMPILATION_CACHE_DIR`), that one stays in force.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        yield
        return
    changes = {
        "jax_compilation_cache_dir": str(directory),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in changes}
    try:
        for name, value in changes.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

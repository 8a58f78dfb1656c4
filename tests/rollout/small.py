"""Weights and programs for tests, cheap to get: most of a tiny model's time goes into compiling it."""

import functools

import jax
import numpy as np

from grpo_jax.models import attach, init, merge_adapters


def _accepted(options):
    """Those options that this release of XLA knows."""
    known = {}
    for name, value in options.items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


QUICK = _accepted(
    {
        "xla_backend_optimization_level": 0,
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,
    }
)
"""No optimisation of machine code: five times faster to compile, and the same numbers to a few roundings."""

quick_jit = functools.partial(jax.jit, compiler_options=QUICK)
"""`jax.jit` for programs that run a few times on little data."""


@functools.cache
def random_params(config, seed=0):
    """Parameters without zeros or ones, so that no bias or scale can hide."""
    shapes = jax.eval_shape(functools.partial(init, config), jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jax.numpy.asarray(rng.normal(size=x.shape) * 0.3 + 0.1, x.dtype), shapes)


def merge(params, adapters, lora):
    """The adapted model as plain weights: W + (alpha / rank) A B."""
    return merge_adapters(attach(params, adapters, lora))

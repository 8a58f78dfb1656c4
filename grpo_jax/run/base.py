"""The weights under the adapters, in checkpoints: those of a model directory are not stored again at every step.

They never change, so a checkpoint holds a fingerprint of them, and they are read again from where the run began. Where
they are from nowhere else (drawn from the seed, or changed by the warm-up) they are stored.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grpo_jax.mesh.compile import jit
from grpo_jax.mesh.mesh import fetch
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Params, cast_params
from grpo_jax.models.weights.read import load
from grpo_jax.models.weights.source import ModelSource
from grpo_jax.run.checkpoint import CheckpointError

Fingerprint = dict[str, int]


def read_base(source: ModelSource, model: DecoderConfig, mesh: jax.sharding.Mesh, expected: Fingerprint) -> Params:
    """Returns the base that a checkpoint left out, in the dtype in which `model` uses it.

    Raises:
      CheckpointError: the model directory holds other weights than it did.
    """
    params = _cast(model, load(source.directory, model, source.names, mesh))
    found = fingerprint(params)
    if found != expected:
        names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
        raise CheckpointError(
            f"model.path: the weights in {source.directory} are not those that the adapters of this checkpoint were "
            f"trained on ({len(names)} of {len(expected)} differ, first {names[0]}); put the earlier ones back"
        )
    return params


def fingerprint(params: Params) -> Fingerprint:
    """Returns a sum of the bits of every leaf, each times an odd number of its place, modulo 2^32.

    Sums of integers do not depend on their order: it is the same on every mesh.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(fetch(_sums(params)))
    return {jax.tree_util.keystr(path, simple=True, separator="."): int(value) for path, value in leaves}


@jit
def _sums(params: Params) -> Params:
    def total(leaf: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
        place = jnp.uint32(0)
        for axis, size in enumerate(leaf.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

    return jax.tree.map(total, params)


_cast = jit(cast_params, static_argnums=0, donate_argnums=1)

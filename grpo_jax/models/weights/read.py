"""Weights from a model directory straight into the mesh's shardings, one tensor at a time."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from grpo_jax.mesh.compile import jit
from grpo_jax.mesh.rules import spec
from grpo_jax.mesh.settings import Rules
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Params
from grpo_jax.models.weights.files import FLOATS, Tensors, listed
from grpo_jax.models.weights.layout import Index, Leaf, make_leaves, put

HEAD = "lm_head.weight"
IGNORED = re.compile(r"rotary_emb\.inv_freq$")
"""Tables that old checkpoints carry and that follow from the configuration."""


def load(
    directory: str | Path,
    config: DecoderConfig,
    names: Mapping[str, str],
    mesh: jax.sharding.Mesh | None = None,
    *,
    dtype: str = "float32",
) -> Params:
    """Returns the parameters in a model directory.

    Each process reads only the slices that its devices hold. Layers are written into their stacked leaf on the
    devices, so that the host holds one tensor at a time (one layer's experts, of a mixture), in its stored dtype.

    A tied model takes its head from the embedding. Where the file has a head all the same, it must equal the
    embedding; a different one is an error, because one of `config.json` and the weights is wrong.

    Args:
      directory: holds model.safetensors, or shards and model.safetensors.index.json.
      config: of the model; `names` gives its leaves' tensors (a family's `names(config)`).
      mesh: where the parameters go, by their logical axes; None puts them on the first device.
      dtype: of the result, whatever the dtype of the file: training keeps float32.

    Raises:
      FileNotFoundError: there is no such directory.
      ValueError: no weights or damaged ones; tensors that are missing, superfluous or of another shape or dtype, all
        in one message; a tied head that is not the embedding; a leaf that the mesh does not divide.
    """
    leaves = make_leaves(config, names)
    shardings = [_sharding(mesh, config.rules, leaf) for leaf in leaves]
    with Tensors(Path(directory)) as tensors:
        _check(tensors, leaves, tied=config.tied)
        if config.tied and HEAD in tensors.entries:
            _check_tied(tensors, names["embed"])
        params: Params = {}
        for leaf, sharding in zip(leaves, shardings, strict=True):
            put(params, leaf.path, _load_leaf(tensors, leaf, sharding, jnp.dtype(dtype)))
    return params


def check(directory: str | Path, config: DecoderConfig, names: Mapping[str, str]) -> None:
    """Compares the headers of a directory's weights with the model's, before any weight is read.

    Raises:
      FileNotFoundError, ValueError: as `load`, for everything that a header says.
    """
    with Tensors(Path(directory)) as tensors:
        _check(tensors, make_leaves(config, names), tied=config.tied)


def _sharding(mesh: jax.sharding.Mesh | None, rules: Rules, leaf: Leaf) -> Sharding:
    if mesh is None:
        return SingleDeviceSharding(jax.local_devices()[0])
    sharding = NamedSharding(mesh, spec(rules, leaf.axes))
    try:
        sharding.shard_shape(leaf.shape)
    except ValueError:
        sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        raise ValueError(
            f"mesh: {sizes} does not divide {leaf.dotted}, whose axes {leaf.axes} have the sizes {leaf.shape}: choose "
            "axes that divide them"
        ) from None
    return sharding


def _check(tensors: Tensors, leaves: list[Leaf], *, tied: bool) -> None:
    """Compares the directory's tensors with the model's; every difference goes into one error."""
    expected = {name: leaf.stored_shape for leaf in leaves for _, name in leaf.tensors()}
    entries = {name: stored for name, stored in tensors.entries.items() if not IGNORED.search(name)}
    extra = entries.keys() - expected.keys() - ({HEAD} if tied else set())
    present = [(name, shape, entries[name]) for name, shape in expected.items() if name in entries]
    found = {
        "missing": [name for name in expected if name not in entries],
        "not part of the model": sorted(extra),
        "of another shape": [
            f"{name} is {list(stored.shape)}, expected {list(shape)}"
            for name, shape, stored in present
            if stored.shape != shape
        ],
        f"of a dtype that is not read ({', '.join(FLOATS)} are)": [
            f"{name} is {stored.dtype}" for name, _, stored in present if stored.dtype not in FLOATS
        ],
    }
    problems = [f"\n  {len(names)} {what}: {listed(names)}" for what, names in found.items() if names]
    if not problems:
        return
    hint = ""
    if HEAD in found["missing"]:
        hint = f"\nA model whose head is its embedding has no {HEAD}: set tie_word_embeddings in its config.json"
    raise ValueError(f"{tensors.directory}: the weights are not those of its config.json{''.join(problems)}{hint}")


def _check_tied(tensors: Tensors, embed: str) -> None:
    shape, other = tensors.entries[embed].shape, tensors.entries[HEAD].shape
    rows = max(1, 2**22 // shape[1])  # in pieces: the two are the largest tensors of many models
    pieces = [(slice(start, min(start + rows, shape[0])), slice(None)) for start in range(0, shape[0], rows)]
    if shape != other or any(not np.array_equal(tensors.read(embed, p), tensors.read(HEAD, p)) for p in pieces):
        raise ValueError(
            f"{tensors.directory}: config.json ties the head to the embedding, but {HEAD} differs from {embed}: set "
            f"tie_word_embeddings to false to use {HEAD}, or remove it"
        )


def _load_leaf(tensors: Tensors, leaf: Leaf, sharding: Sharding, dtype: Any) -> jax.Array:
    if leaf.stack == 0:
        return _place(tensors, leaf, (), sharding).astype(dtype)
    one = sharding
    if isinstance(sharding, NamedSharding):
        one = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    whole = jit(lambda: jnp.zeros(leaf.shape, dtype), out_shardings=sharding)()
    for layer in range(leaf.shape[0]):
        # Waiting keeps the host from running ahead of the devices with ever more layers in its memory.
        whole = _write(whole, _place(tensors, leaf, (layer,), one), layer, sharding).block_until_ready()
    return whole


def _write_layer(whole: jax.Array, value: jax.Array, layer: int, sharding: Sharding) -> jax.Array:
    whole = jax.lax.dynamic_update_index_in_dim(whole, value.astype(whole.dtype), layer, 0)
    return jax.lax.with_sharding_constraint(whole, sharding)


_write = jit(_write_layer, donate_argnums=0, static_argnums=3)


def _place(tensors: Tensors, leaf: Leaf, layer: tuple[int, ...], sharding: Sharding) -> jax.Array:
    """Returns one layer of a leaf (or all of an unstacked one) on the devices, in its stored dtype."""
    shape = leaf.shape[len(layer) :]
    parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def part(index: Index) -> np.ndarray:
        # Devices that hold the same slice share one reading of it.
        key = tuple(axis.indices(size)[:2] for axis, size in zip(index, shape, strict=True))
        if key not in parts:
            found = _part(tensors, leaf, layer, tuple(slice(*range_) for range_ in key))
            parts[key] = found.astype(dtype, copy=False)
        return parts[key]

    stored = {tensors.entries[name].dtype for position, name in leaf.tensors() if position[: len(layer)] == layer}
    dtype = functools.reduce(jnp.promote_types, sorted(FLOATS[name] for name in stored))
    return jax.make_array_from_callback(shape, sharding, part, dtype=jnp.dtype(dtype))


def _part(tensors: Tensors, leaf: Leaf, layer: tuple[int, ...], index: Index) -> np.ndarray:
    if len(layer) == leaf.stack:
        return leaf.from_stored(lambda slices: tensors.read(leaf.name(layer), slices), index)
    experts, index = range(*index[0].indices(leaf.shape[len(layer)])), index[1:]
    return np.stack([_part(tensors, leaf, (*layer, expert), index) for expert in experts])

"""A model directory from parameters: sharded safetensors with their index, config.json, generation_config.json."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from grpo_jax.mesh.mesh import fetch
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Params
from grpo_jax.models.weights.files import FLOATS, INDEX, SINGLE
from grpo_jax.models.weights.layout import Leaf, get, make_leaves

SHARD_BYTES = 4_000_000_000


def save(
    params: Params,
    config: DecoderConfig,
    family: Any,
    directory: str | Path,
    *,
    dtype: str = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
    fields: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model directory that `load` and transformers read. It appears whole or not at all.

    Args:
      params: of the model, on any mesh; every process calls this, the first one writes.
      family: gives names, config.json's fields and the architecture (see `models.families`).
      directory: must not exist yet, or be empty.
      dtype: of the stored weights.
      shard_bytes: of one file at most, unless one tensor alone is larger. The host holds about as much.
      fields: more of config.json, such as token ids; the family's own fields win.
      generation: generation_config.json; None writes the token ids among `fields`.

    Raises:
      FileExistsError: the directory holds something.
      ValueError: a weight is not finite in `dtype`, or the dtype is not one of safetensors' floats.
    """
    with new_directory(directory) as folder:
        write_weights(params, config, family.names(config), folder, dtype=dtype, shard_bytes=shard_bytes)
        write_json(folder, "config.json", config_json(config, family, dtype=dtype, fields=fields or {}))
        tokens = {name: value for name, value in (fields or {}).items() if name.endswith("_token_id")}
        write_json(folder, "generation_config.json", tokens if generation is None else generation)


def check_new(directory: str | Path) -> Path:
    """Returns the absolute path of a directory that does not exist yet, or is empty.

    Raises:
      FileExistsError: there is something.
    """
    directory = Path(directory).absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not an empty directory: choose another, or remove it")
    return directory


@contextlib.contextmanager
def new_directory(directory: str | Path) -> Iterator[Path]:
    """Yields a temporary directory that takes the name `directory` at the end, unless an error came before.

    Raises:
      FileExistsError: there is such a directory, and it holds something.
    """
    directory = check_new(directory)
    folder = directory.with_name(f".{directory.name}.part")
    writes = jax.process_index() == 0
    if writes:
        shutil.rmtree(folder, ignore_errors=True)  # of an export that was killed
        folder.mkdir(parents=True)
    try:
        yield folder
        if writes:
            os.replace(folder, directory)
    finally:
        if writes:
            shutil.rmtree(folder, ignore_errors=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"written: {directory}")


def config_json(config: DecoderConfig, family: Any, *, dtype: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns config.json: the family's fields, the others, and the dtype under its old and its new name."""
    named = {"architectures": [family.architecture], "model_type": family.name, "dtype": dtype, "torch_dtype": dtype}
    return {**fields, **family.write(config), **named}


def write_json(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, in the first process."""
    if jax.process_index() == 0:
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def write_weights(
    params: Params,
    config: DecoderConfig,
    names: Mapping[str, str],
    folder: Path,
    *,
    dtype: str = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes the tensors into an existing directory: one file, or shards and their index (see `save`)."""
    if dtype not in FLOATS.values():
        raise ValueError(f"dtype: {dtype!r}; expected one of {', '.join(FLOATS.values())}")
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes: {shard_bytes}; expected at least 1")
    leaves = make_leaves(config, names)
    shards = _plan(leaves, jnp.dtype(dtype).itemsize, shard_bytes)
    count = max(shards.values()) + 1
    files = [SINGLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    held: dict[str, np.ndarray] = {}
    current = 0
    for name, value in _tensors(params, leaves, dtype):
        if shards[name] != current:
            write_tensors(held, folder / files[current])
            held, current = {}, shards[name]
        held[name] = value
    write_tensors(held, folder / files[current])
    if count > 1:
        sizes = (math.prod(leaf.shape) for leaf in leaves)
        index = {
            "metadata": {"total_size": sum(sizes) * jnp.dtype(dtype).itemsize},
            "weight_map": {name: files[shard] for name, shard in sorted(shards.items())},
        }
        write_json(folder, INDEX, index)


def _plan(leaves: list[Leaf], itemsize: int, shard_bytes: int) -> dict[str, int]:
    """Returns the shard of every tensor, filled in the order in which tensors are written."""
    shards, shard, filled = {}, 0, 0
    for leaf in leaves:
        size = math.prod(leaf.inner) * itemsize
        for _, name in leaf.tensors():
            if filled and filled + size > shard_bytes:
                shard, filled = shard + 1, 0
            shards[name] = shard
            filled += size
    return shards


def _tensors(params: Params, leaves: list[Leaf], dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every tensor in the checkpoint's layout. The devices send one layer of a leaf at a time."""
    for leaf in leaves:
        value = get(params, leaf.path)
        if value.shape != leaf.shape:
            raise ValueError(f"{leaf.dotted} has the shape {value.shape}; the configuration expects {leaf.shape}")
        for position, name in leaf.tensors():
            if not any(position[1:]):  # a layer's first expert, or all there is of it
                block = fetch((value[position[0]] if position else value).astype(dtype))
            part = block[position[1:]]
            if not np.isfinite(part).all():
                raise ValueError(f"{name} holds values that are not finite in {dtype}: the model would be of no use")
            yield name, np.ascontiguousarray(leaf.to_stored(part))


def write_tensors(held: Mapping[str, np.ndarray], file: Path) -> None:
    """Writes a safetensors file, in the first process."""
    if jax.process_index() == 0:
        # Readers of other libraries refuse a file that does not say which framework's layout it has.
        save_file(dict(held), file, metadata={"format": "pt"})
        # safetensors lets nobody else read it; servers often run as somebody else.
        file.chmod(file.parent.stat().st_mode & 0o666)

"""The tensors of a model directory: which file holds each, in what shape and dtype, and slices of them.

A model repository is not trusted: only safetensors are read, and an index may not lead out of its directory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import ml_dtypes  # noqa: F401  (NumPy knows bfloat16 only after this import)
import numpy as np
from safetensors import SafetensorError, safe_open

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The dtypes that are read, by their names in a safetensors header."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor in a file; `dtype` is the file's name for it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class Tensors:
    """The tensors of a directory, as `entries` by name. A context manager: leaving it closes the files.

    As other readers do, `model.safetensors` is preferred to an index where a directory has both, and a tensor that
    lies in a shard without being in the index counts. A link that leads out of the directory is followed: caches of
    downloads are made of such links, and whoever can write one can write the file itself.

    Raises:
      FileNotFoundError: there is no such directory.
      ValueError: no weights, only pickles, an index with a file outside or absent, a damaged file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self.entries: dict[str, Stored] = {}
        self._opened: dict[Path, Any] = {}
        self._stack = contextlib.ExitStack()
        with self._stack:
            for name, claimed in _shards(self.directory).items():
                self._open(self.directory / name, claimed)
            self._stack = self._stack.pop_all()

    def __enter__(self) -> Tensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Returns one slice of a tensor, in its stored dtype; nothing else of it is read."""
        return self._opened[self.entries[name].file].get_slice(name)[index]

    def _open(self, file: Path, claimed: set[str]) -> None:
        if not file.is_file():
            raise ValueError(f"{self.directory / INDEX} names the shard {file.name}, but {file} is absent: fetch it")
        try:
            opened = self._stack.enter_context(safe_open(file, framework="numpy"))
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged: {_damage(file, error)}; fetch it again") from None
        self._opened[file] = opened
        names = list(opened.keys())
        if absent := sorted(claimed - set(names)):
            raise ValueError(f"{self.directory / INDEX} looks for {listed(absent)} in {file.name}, which lacks them")
        for name in names:
            header = opened.get_slice(name)
            if name not in self.entries or name in claimed:
                self.entries[name] = Stored(file, header.get_dtype(), tuple(header.get_shape()))


def listed(names: list[str], most: int = 40) -> str:
    """Returns the names in one line, at most `most` of them.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def read_json(file: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds something else.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a JSON {type(value).__name__}; expected an object")
    return value


def _shards(directory: Path) -> dict[str, set[str]]:
    """Returns the weight files' names, each with the tensors that the index looks for in it."""
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no model directory {directory}")
    if (directory / SINGLE).exists():
        return {SINGLE: set()}
    if (directory / INDEX).exists():
        return _index(directory / INDEX)
    pickles = sorted({path.name for pattern in PICKLES for path in directory.glob(pattern)})
    if pickles:
        raise ValueError(
            f"{directory} holds its weights as {listed(pickles, 4)} only: such files can run code when they are read; "
            "convert them to safetensors, or take a revision that has them"
        )
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    found = f" (there is {listed(others, 4)})" if others else ""
    raise ValueError(f"{directory} holds no weights: expected {SINGLE} or {INDEX}{found}")


def _index(file: Path) -> dict[str, set[str]]:
    weight_map = read_json(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise ValueError(f"{file} has no 'weight_map' from tensors to files")
    shards: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        shards.setdefault(name, set()).add(tensor)
    for name in shards:
        parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
        anchored = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
        if anchored or ".." in parts or not name.endswith(".safetensors"):
            raise ValueError(f"{file} names the file {name!r}: a shard is a .safetensors file inside {file.parent}")
    return shards


def _damage(file: Path, error: Exception) -> str:
    """Returns what is wrong with a file that does not open, with its size where that is the reason."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 + length:
            return f"{size} bytes, too few even for its header"
        try:
            header = json.loads(stream.read(length))
            end = 8 + length + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError):
            return str(error)
    return f"its header announces {end} bytes, the file has {size}" if end != size else str(error)

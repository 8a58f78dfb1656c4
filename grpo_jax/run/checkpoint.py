"""Checkpoints: Orbax writes them in the background, a manifest of digests makes them valid.

Orbax restores a file with a flipped byte, and a directory without its commit mark, in silence. So every checkpoint
gets a manifest with the digest of each item, written last: a checkpoint without a valid manifest does not exist.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

MANIFEST = "manifest.json"
ITEMS = ("state", "meta")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used, with the reason and the way on."""


class Checkpoints:
    """The checkpoints of one directory. A context manager: leaving it waits for what is being written.

    Args:
      directory: where they are; made when the first is saved.
      keep: newest checkpoints that stay.
    """

    def __init__(self, directory: Path, *, keep: int = 2) -> None:
        self.directory = directory.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=False)
        self._options = options
        self._manager: ocp.CheckpointManager | None = None
        self._pending: int | None = None
        self.rejected: dict[int, str] = {}
        """Steps whose directories are no checkpoints, with the reason; filled by `latest`."""

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        if self._manager is not None:
            self._manager.wait_until_finished()
            self.poll()
            self._manager.close()

    def latest(self) -> int | None:
        """Returns the newest step with a valid manifest, or None."""
        self.rejected = {}
        steps = sorted((int(p.name) for p in self.directory.glob("*") if p.name.isdigit()), reverse=True)
        for step in steps:
            reason = self.fault(step)
            if reason is None:
                return step
            self.rejected[step] = reason
        return None

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Begins to write a checkpoint; an earlier one that is still being written is finished first."""
        manager = self._open()
        manager.wait_until_finished()
        self.poll()
        if step in self.rejected or step in manager.all_steps():
            manager.delete(step)
        args = {"state": ocp.args.StandardSave(state), "meta": ocp.args.JsonSave(meta)}
        manager.save(step, args=ocp.args.Composite(**args), force=True)
        self._pending = step

    def poll(self) -> None:
        """Writes the manifest of the last checkpoint if its data is on disk. Returns at once otherwise."""
        if self._pending is None or self._manager is None or self._manager.is_saving_in_progress():
            return
        if jax.process_index() == 0:
            folder = self.directory / str(self._pending)
            text = json.dumps({item: digest(folder / item) for item in ITEMS}, indent=1)
            temporary = folder / f".{MANIFEST}"
            with temporary.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(folder / MANIFEST)
        self._pending = None

    def meta(self, step: int) -> dict[str, Any]:
        """Returns what was stored beside the arrays."""
        restored = self._open().restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return restored["meta"]

    def restore(self, step: int, abstract: Any) -> Any:
        """Returns the state, in the shapes, dtypes and shardings of `abstract`.

        Raises:
          CheckpointError: the checkpoint holds other arrays.
        """
        self._compare(step, abstract)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        return self._open().restore(step, args=args)["state"]

    def _compare(self, step: int, abstract: Any) -> None:
        """Raises CheckpointError unless the stored arrays are those that `abstract` asks for, in shape and type."""
        folder = self.directory / str(step) / "state"
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            found = _described(reader.metadata(folder).item_metadata.tree)
        wanted = _described(abstract)
        differ = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
        if differ:
            raise CheckpointError(
                f"{folder} is of another optimizer, model or objective: {len(differ)} of {len(wanted)} arrays differ, "
                f"first {differ[0]} ({found.get(differ[0], 'missing')} there, {wanted.get(differ[0], 'none')} now); "
                "put back what it was trained with, or set resume=never to start anew (the old run is moved aside)"
            )

    def restore_part(self, step: int, abstract: Any) -> Any:
        """Returns a part of the state: what `abstract` has, by the same names; the rest is not read."""
        args = ocp.args.PyTreeRestore(
            abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=True
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(self.directory / str(step) / "state", args=args)

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.directory, options=self._options)
        return self._manager

    def fault(self, step: int) -> str | None:
        """Returns why a step's directory is no checkpoint, or None if it is one."""
        folder = self.directory / str(step)
        manifest = folder / MANIFEST
        if not manifest.exists():
            return f"{manifest} is missing: the run ended while it was being written"
        digests = json.loads(manifest.read_text())
        for item in ITEMS:
            if not (folder / item).is_dir() or digest(folder / item) != digests[item]:
                return f"{folder / item} does not have the digest of {manifest}: its files were changed"
        return None


def _described(tree: Any) -> dict[str, str]:
    """Returns type and shape of every array, by its dotted name, which does not depend on the kinds of containers."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named if hasattr(leaf, "dtype")}


def digest(folder: Path) -> str:
    """Returns the SHA-256 over the names and bytes of all files below a folder."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()

"""Whether two commits train alike, byte for byte: for a rebuilding that must not change a number.

What it does: checks both commits out, runs six short trainings with the code and the configuration of each, and
compares metrics.jsonl without its times, samples.jsonl, and every array of the last checkpoint. What it leaves out:
whether they are equally fast. `python experiments/rebuild/compare.py OLD NEW`; runs that are there are used again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

OUT = Path("outputs/rebuild").absolute()
SHORT = ("train.steps=12", "warmup.steps=60")
RUNS: dict[str, tuple[str, ...]] = {
    "default": (),
    "ppo": ("objective=ppo", "train.epochs=2", "train.minibatches=2"),
    "deepseek_r1": ("objective=deepseek_r1", "train.reference_every=3"),
    "lora": ("lora.rank=4",),
    "dynamic": ("train.dynamic_rounds=3",),
    "mesh": ("mesh.fsdp=2", "mesh.tensor=2"),
}
"""Changes of configs/arithmetic.yaml, by the name of the run."""


def main(commits: list[str]) -> int:
    """Returns 0 where all runs of two commits are equal, and 1 elsewhere; prints a line for each."""
    old, new = (subprocess.check_output(("git", "rev-parse", commit), text=True).strip() for commit in commits)
    equal = True
    for name in RUNS:
        found = {commit: record(train(commit, name)) for commit in (old, new)}
        differ = [part for part in found[old] if found[old][part] != found[new][part]]
        equal &= not differ
        print(f"{name:<12} {'equal' if not differ else 'DIFFERS in ' + ', '.join(differ)}", flush=True)
    return 0 if equal else 1


def train(commit: str, name: str) -> Path:
    """Returns the directory of a run of a commit, which is trained if it is not there."""
    out = OUT / commit[:12] / name
    if not (out / "config.yaml").exists():
        code = OUT / commit[:12] / "code"
        if not code.exists():
            subprocess.run(("git", "worktree", "add", "--force", "--detach", code, commit), check=True)
        shutil.rmtree(out, ignore_errors=True)
        flags = "--xla_force_host_platform_device_count=4" if name == "mesh" else ""
        environment = {**os.environ, "PYTHONPATH": str(code), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        command = (sys.executable, "-m", "grpo_jax.cli.main", "train", "configs/arithmetic.yaml")
        changes = (*SHORT, *RUNS[name], f"out={out}")
        subprocess.run((*command, *changes), cwd=code, env=environment, check=True, stdout=subprocess.DEVNULL)
    return out


def record(out: Path) -> dict[str, Any]:
    """Returns what a run left behind, without its times, and a digest of every array of its last checkpoint."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    step = max(int(path.name) for path in (out / "checkpoints").iterdir() if path.name.isdigit())
    found = {
        "metrics": [json.dumps({name: value for name, value in row.items() if name != "time"}) for row in rows],
        "samples": (out / "samples.jsonl").read_bytes(),
    }
    return found | digests(out / "checkpoints" / str(step) / "state")


def digests(state: Path) -> dict[str, str]:
    """Returns the SHA-256 of every array of a checkpoint, with its type and shape, by its name."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(state).item_metadata.tree
        host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        arrays = reader.restore(state, args=ocp.args.PyTreeRestore(restore_args=host))
    leaves, _ = jax.tree_util.tree_flatten_with_path(arrays)
    return {
        jax.tree_util.keystr(path): hashlib.sha256(f"{x.dtype}{x.shape}".encode() + x.tobytes()).hexdigest()
        for path, x in leaves
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""One of two processes that load a checkpoint onto one mesh and save it again; run by test_processes.py."""

import json
import sys
from pathlib import Path

import jax

address, number, source_directory, target = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, num_processes=2, process_id=int(number))

from grpo_jax.mesh import make_mesh  # noqa: E402
from grpo_jax.models.weights import load, read_source, save  # noqa: E402
from grpo_jax.models.weights.files import Tensors  # noqa: E402

read, taken = Tensors.read, [0]


def counted(self, name, index):
    """Reads a slice and counts its numbers."""
    part = read(self, name, index)
    taken[0] += part.size
    return part


Tensors.read = counted
source = read_source(source_directory)
params = load(source.directory, source.config, source.names, make_mesh(fsdp=2, tensor=2))
save(params, source.config, source.family, target, dtype="float32", shard_bytes=20_000)
print(json.dumps({"read": taken[0], "devices": jax.device_count(), "complete": Path(target, "config.json").exists()}))

"""Seconds and memory of a checkpoint's way in and out, for the shape of Qwen2.5-0.5B, as one JSON line.

What it does: writes a model directory of random bfloat16 weights (0.49 thousand million parameters, about 1 GB), reads
it tensor by tensor as training does, and writes what it read once more. `host` is the peak of memory that NumPy held
beside the arrays on the device; on a CPU the device's memory is the process's own, which `peak` counts as well.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
import tracemalloc
from pathlib import Path

import jax

from grpo_jax.mesh import make_mesh
from grpo_jax.models import init
from grpo_jax.models.families import FAMILIES
from grpo_jax.models.weights import load, read_source, save

SHAPE = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "rope_theta": 1e6,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", help="of the parameters that are read (default float32)")
    parser.add_argument("--fsdp", type=int, default=1, help="devices that share the parameters (default 1)")
    arguments = parser.parse_args()
    family = FAMILIES["qwen2"]
    config = family.read(SHAPE)
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "first", Path(folder) / "second"
        save(init(config, jax.random.key(0)), config, family, first)
        source = read_source(first)
        mesh = make_mesh(fsdp=arguments.fsdp)
        tracemalloc.start()
        start = time.monotonic()
        params = jax.block_until_ready(load(first, source.config, source.names, mesh, dtype=arguments.dtype))
        read = time.monotonic() - start
        _, host = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        start = time.monotonic()
        save(params, config, family, second)
        written = time.monotonic() - start
    figures = {
        "dtype": arguments.dtype,
        "fsdp": arguments.fsdp,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "read_seconds": round(read, 2),
        "host_mib": round(host / 2**20, 1),
        "largest_tensor_mib": round(2 * params["embed"].size / 2**20, 1),
        "write_seconds": round(written, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

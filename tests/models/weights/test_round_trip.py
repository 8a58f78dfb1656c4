"""Checkpoints that transformers wrote, of every family: load, save, load again, on one device and on a mesh."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from grpo_jax.mesh import make_mesh
from grpo_jax.models.weights import load, read_source, save
from tests.models.golden.compare import HERE
from tests.models.golden.variants import VARIANTS


@pytest.mark.parametrize("name", VARIANTS)
def test_load_save_load_gives_identical_tensors(name, tmp_path):
    source = read_source(HERE / name)
    original = load_file(HERE / name / "model.safetensors")
    params = load(source.directory, source.config, source.names, make_mesh(fsdp=2))
    save(params, source.config, source.family, tmp_path / "out", dtype="float32", shard_bytes=20_000)
    again = read_source(tmp_path / "out")
    assert again.config == source.config
    assert again.family is source.family
    written = {n: t for file in again.directory.glob("*.safetensors") for n, t in load_file(file).items()}
    assert written.keys() == original.keys()
    for tensor in original:
        np.testing.assert_array_equal(written[tensor], original[tensor].astype(np.float32), err_msg=tensor)
    plain = load(again.directory, again.config, again.names)
    jax.tree.map(np.testing.assert_array_equal, plain, params)

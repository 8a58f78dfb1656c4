"""What is written is what was read, in shards or in one file, whole or not at all."""

import json
import os
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from grpo_jax.mesh import make_mesh
from grpo_jax.models.weights.layout import Leaf
from grpo_jax.models.weights.read import load
from grpo_jax.models.weights.write import _tensors, new_directory, save
from tests.models.weights.checkpoint import CONFIG, FAMILY, decoder_config, names, random_tensors, write_checkpoint


def stored(directory):
    """Every tensor of a directory, by name."""
    return {name: t for file in directory.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("dtype", "shard_bytes"), [("bfloat16", 10**9), ("float16", 3000), ("float32", 1)])
def test_load_save_load_gives_identical_tensors(tmp_path, dtype, shard_bytes, tied):
    raw, config = CONFIG | {"tie_word_embeddings": tied}, decoder_config(tied=tied)
    tensors = write_checkpoint(tmp_path / "a", raw, random_tensors(raw, dtype), shards=2)
    params = load(tmp_path / "a", config, names(config))
    save(params, config, FAMILY, tmp_path / "b", dtype=dtype, shard_bytes=shard_bytes)
    written = stored(tmp_path / "b")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert written[name].dtype == tensor.dtype
        np.testing.assert_array_equal(written[name], tensor)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "b", config, names(config)), params)
    index = tmp_path / "b" / "model.safetensors.index.json"
    files = sorted(path.name for path in (tmp_path / "b").glob("*.safetensors"))
    if shard_bytes == 10**9:
        assert files == ["model.safetensors"]
        assert not index.exists()
        return
    content = json.loads(index.read_text())
    assert content["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert ("lm_head.weight" in content["weight_map"]) == (not tied)
    assert sorted(set(content["weight_map"].values())) == files
    assert files[-1] == f"model-{len(files):05d}-of-{len(files):05d}.safetensors"
    for file in files:
        with safe_open(tmp_path / "b" / file, "numpy") as opened:
            assert opened.metadata() == {"format": "pt"}
            held = {name: tensors[name].nbytes for name in opened.keys()}  # noqa: SIM118
        assert {name for name, where in content["weight_map"].items() if where == file} == held.keys()
        assert sum(held.values()) <= shard_bytes or len(held) == 1


def test_whoever_may_read_the_directory_may_read_the_weights(tmp_path):
    config = decoder_config()
    write_checkpoint(tmp_path / "a")
    before = os.umask(0o027)
    try:
        save(load(tmp_path / "a", config, names(config)), config, FAMILY, tmp_path / "b")
    finally:
        os.umask(before)
    modes = {path.name: stat.filemode(path.stat().st_mode) for path in (tmp_path / "b").iterdir()}
    assert set(modes.values()) == {"-rw-r-----"}, modes


def test_parameters_on_a_mesh_are_written_whole(tmp_path):
    config = decoder_config()
    tensors = write_checkpoint(tmp_path / "a")
    params = load(tmp_path / "a", config, names(config), make_mesh(fsdp=4, tensor=2))
    save(params, config, FAMILY, tmp_path / "b", dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, stored(tmp_path / "b"), tensors)


def test_experts_are_written_one_by_one():
    value = jnp.arange(2 * 3 * 4 * 5, dtype=jnp.float32).reshape(2, 3, 4, 5)
    leaf = Leaf(("gate",), "m.{layer}.{expert}", value.shape, ("layers", "expert", "embed", None), 2)
    written = dict(_tensors({"gate": value}, [leaf], "float32"))
    assert set(written) == {f"m.{i}.{e}" for i in range(2) for e in range(3)}
    np.testing.assert_array_equal(written["m.1.2"], np.asarray(value[1, 2]).T)


def test_config_json_names_the_dtype_in_both_styles_and_keeps_the_familys_fields(tmp_path):
    config = decoder_config()
    params = load(write_and_path(tmp_path / "a"), config, names(config))
    fields = {"eos_token_id": [2, 5], "bos_token_id": 1, "vocab_size": 7, "max_position_embeddings": 99}
    save(params, config, FAMILY, tmp_path / "b", fields=fields)
    written = json.loads((tmp_path / "b" / "config.json").read_text())
    assert written["architectures"] == ["Qwen2ForCausalLM"]
    assert written["model_type"] == "qwen2"
    assert written["dtype"] == written["torch_dtype"] == "bfloat16"
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 10000.0
    assert written["vocab_size"] == 32
    assert written["bos_token_id"] == 1
    generation = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [2, 5], "bos_token_id": 1}
    save(params, config, FAMILY, tmp_path / "c", fields=fields, generation={"eos_token_id": 3})
    assert json.loads((tmp_path / "c" / "generation_config.json").read_text()) == {"eos_token_id": 3}


def write_and_path(directory):
    write_checkpoint(directory)
    return directory


def test_a_directory_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    (tmp_path / "file").write_text("kept")
    for taken in ("full", "file"):
        with (
            pytest.raises(FileExistsError, match=rf"{taken} exists and is not an empty directory"),
            new_directory(tmp_path / taken),
        ):
            pytest.fail("entered")
    assert (tmp_path / "full" / "file").read_text() == (tmp_path / "file").read_text() == "kept"
    (tmp_path / "empty").mkdir()
    with new_directory(tmp_path / "empty") as folder:
        (folder / "file").write_text("new")
    assert (tmp_path / "empty" / "file").read_text() == "new"


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    """An error in the middle leaves nothing; what a killed export left does not get into the next one."""
    config = decoder_config()
    params = load(write_and_path(tmp_path / "a"), config, names(config))
    params["layers"]["down"] = params["layers"]["down"].at[2, 3, 4].set(1e6)
    with pytest.raises(ValueError, match=r"model\.layers\.2\.mlp\.down_proj\.weight holds values .* not finite in flo"):
        save(params, config, FAMILY, tmp_path / "b", dtype="float16", shard_bytes=3000)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (tmp_path / ".b.part").mkdir()
    (tmp_path / ".b.part" / "model-00009-of-00009.safetensors").touch()
    save(params, config, FAMILY, tmp_path / "b", shard_bytes=3000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert not (tmp_path / "b" / "model-00009-of-00009.safetensors").exists()


def test_wrong_arguments_are_named(tmp_path):
    config = decoder_config()
    params = load(write_and_path(tmp_path / "a"), config, names(config))
    with pytest.raises(ValueError, match="dtype: 'int8'; expected one of float32, float16, bfloat16"):
        save(params, config, FAMILY, tmp_path / "b", dtype="int8")
    with pytest.raises(ValueError, match="shard_bytes: 0; expected at least 1"):
        save(params, config, FAMILY, tmp_path / "b", shard_bytes=0)
    with pytest.raises(ValueError, match=r"embed has the shape \(32, 16\); the configuration expects \(33, 16\)"):
        save(params, decoder_config(vocab=33), FAMILY, tmp_path / "b")

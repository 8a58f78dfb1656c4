"""Weights come in as they are stored, in any dtype, number of files and mesh, and mistakes are told at once."""

import json
import re
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from grpo_jax.mesh import Rules, make_mesh
from grpo_jax.models import logical_axes
from grpo_jax.models.weights import read
from grpo_jax.models.weights.files import Tensors
from grpo_jax.models.weights.layout import Leaf
from grpo_jax.models.weights.read import load
from grpo_jax.testing.tiny import tiny_config
from tests.models.weights.checkpoint import CONFIG, NAMES, decoder_config, names, random_tensors, write_checkpoint

Q = "model.layers.1.self_attn.q_proj.weight"
TIED = CONFIG | {"tie_word_embeddings": True}


def loaded(directory, config=None, mesh=None, **options):
    config = config or decoder_config()
    return load(directory, config, names(config), mesh, **options)


def test_each_leaf_is_the_tensor_that_a_linear_layer_multiplies_with(tmp_path):
    """y = x W^T of the checkpoint's matrices, with heads in the order that grouped queries have there."""
    tensors = write_checkpoint(tmp_path)
    params = jax.tree.map(np.asarray, loaded(tmp_path))
    x = np.random.default_rng(1).standard_normal(16).astype(np.float32)
    layer = params["layers"]
    # Head h of the checkpoint is query h % 2 of key/value head h // 2.
    q = np.einsum("d,dkrc->krc", x, layer["attention"]["q"][1])
    np.testing.assert_allclose(q, (tensors[Q] @ x).reshape(2, 2, 4), rtol=1e-5, atol=1e-6)
    k = np.einsum("d,dkc->kc", x, layer["attention"]["k"][2])
    expected = (tensors["model.layers.2.self_attn.k_proj.weight"] @ x).reshape(2, 4)
    np.testing.assert_allclose(k, expected, rtol=1e-5, atol=1e-6)
    out = np.einsum("krc,krcd->d", x.reshape(2, 2, 4), layer["out"][0])
    np.testing.assert_allclose(out, tensors["model.layers.0.self_attn.o_proj.weight"] @ x, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(layer["down"][1], tensors["model.layers.1.mlp.down_proj.weight"].T)
    np.testing.assert_array_equal(
        layer["attention"]["q_bias"][1].ravel(), tensors["model.layers.1.self_attn.q_proj.bias"]
    )
    np.testing.assert_array_equal(params["embed"], tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(params["head"], tensors["lm_head.weight"].T)


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_dtype_and_number_of_files_gives_float32_of_the_stored_values(tmp_path, dtype, shards):
    write_checkpoint(tmp_path / "stored", tensors=random_tensors(CONFIG, dtype), shards=shards)
    wide = {name: tensor.astype(np.float32) for name, tensor in random_tensors(CONFIG, dtype).items()}
    write_checkpoint(tmp_path / "wide", tensors=wide)
    got, expected = loaded(tmp_path / "stored"), loaded(tmp_path / "wide")
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("float32")}
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_another_dtype_can_be_asked_for(tmp_path):
    write_checkpoint(tmp_path, dtype="bfloat16")
    params = loaded(tmp_path, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


MESHES = [{"tensor": 2}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2}, {"group": 2, "fsdp": 2, "tensor": 2}]


@pytest.mark.parametrize("axes", MESHES)
def test_a_mesh_changes_where_the_values_lie_and_not_the_values(tmp_path, axes):
    write_checkpoint(tmp_path, dtype="bfloat16", shards=2)
    mesh, config = make_mesh(**axes), decoder_config()
    params, plain = loaded(tmp_path, mesh=mesh), loaded(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, plain)
    wanted = jax.tree.map(
        lambda axes: jax.sharding.NamedSharding(mesh, read.spec(Rules(), axes)),
        logical_axes(config),
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), params, wanted))


def test_only_what_a_device_needs_is_read_and_nothing_twice(tmp_path, monkeypatch):
    """On fsdp=4 x tensor=2 the slices of every tensor add up to one copy, each of at most its share."""
    write_checkpoint(tmp_path)
    taken = {}
    whole = Tensors.read

    def counted(self, name, index):
        part = whole(self, name, index)
        taken.setdefault(name, []).append(part.size)
        return part

    monkeypatch.setattr(Tensors, "read", counted)
    loaded(tmp_path, mesh=make_mesh(fsdp=4, tensor=2))
    sizes = {name: tensor.size for name, tensor in random_tensors(CONFIG).items()}
    assert {name: sum(parts) for name, parts in taken.items()} == sizes
    assert taken[Q] == [16 * 16 // 8] * 8
    assert taken["lm_head.weight"] == [32 * 16 // 8] * 8


def test_the_host_holds_about_one_tensor_at_a_time(tmp_path):
    """24 MB of weights in 80 tensors: Python's allocations peak near the largest one, not near a stacked leaf."""
    raw = CONFIG | {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12, "vocab_size": 2048}
    tensors = write_checkpoint(tmp_path, raw, random_tensors(raw, "bfloat16"), shards=3)
    largest, total = max(t.nbytes for t in tensors.values()), sum(t.nbytes for t in tensors.values())
    assert total > 20 * largest
    config = decoder_config(hidden=256, mlp=1024, layers=12, vocab=2048, head_width=64)
    loaded(tmp_path, config)  # compiles: the second time holds only arrays
    tracemalloc.start()
    loaded(tmp_path, config)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * largest, (peak, largest, total)


def test_a_matrix_may_be_cut_along_any_axis():
    """`from_stored` is exact for parts that no mesh asks for today, too."""
    leaf = Leaf(("q",), "{layer}", (3, 16, 2, 2, 4), ("layers", "embed", "kv_heads", None, None), 1)
    stored = np.arange(256).reshape(16, 16)
    ours = leaf.from_stored(lambda index: stored[index], (slice(None),) * 4)
    np.testing.assert_array_equal(leaf.to_stored(ours), stored)
    for index in np.ndindex(2, 2, 2, 2):
        part = tuple(slice(i * n // 2, (i + 1) * n // 2) for i, n in zip(index, leaf.inner, strict=True))
        np.testing.assert_array_equal(leaf.from_stored(lambda index: stored[index], part), ours[part])


def test_experts_are_stacked_behind_layers(tmp_path):
    """A leaf with two stacked axes, on one device and with its experts split; dtypes may differ between tensors."""
    rng = np.random.default_rng(0)
    stored = {
        (i, e): rng.standard_normal((6, 4)).astype(np.float32 if e else "bfloat16") for i in range(2) for e in range(4)
    }
    save_file({f"m.{i}.{e}": value for (i, e), value in stored.items()}, tmp_path / "model.safetensors")
    leaf = Leaf(("gate",), "m.{layer}.{expert}", (2, 4, 4, 6), ("layers", None, "embed", "mlp"), 2)
    expected = np.stack([np.stack([stored[i, e].astype(np.float32).T for e in range(4)]) for i in range(2)])
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data", "fsdp", "tensor"))
    with Tensors(tmp_path) as tensors:
        for sharding in (read._sharding(None, Rules(), leaf), split):
            got = read._load_leaf(tensors, leaf, sharding, jnp.float32)
            np.testing.assert_array_equal(got, expected)
            assert got.sharding.is_equivalent_to(sharding, 4)


def test_a_tied_model_has_no_head_of_its_own(tmp_path):
    write_checkpoint(tmp_path, TIED)
    params = loaded(tmp_path, decoder_config(tied=True))
    assert "head" not in params


def test_a_tied_head_in_the_file_must_be_the_embedding(tmp_path):
    tensors = random_tensors(TIED)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    write_checkpoint(tmp_path, TIED, tensors)
    assert "head" not in loaded(tmp_path, decoder_config(tied=True))
    tensors["lm_head.weight"][31, 15] += 1
    write_checkpoint(tmp_path, TIED, tensors)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        loaded(tmp_path, decoder_config(tied=True))


def test_tables_of_rotary_frequencies_are_passed_over(tmp_path):
    tensors = random_tensors(CONFIG)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    write_checkpoint(tmp_path, tensors=tensors)
    loaded(tmp_path)


def test_all_differences_are_in_one_message(tmp_path):
    tensors = random_tensors(CONFIG)
    del tensors[Q], tensors["model.norm.weight"]
    tensors["model.layers.0.mlp.bias"] = np.ones(3, np.float32)
    tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((24, 15), np.float32)
    tensors["model.layers.1.mlp.up_proj.weight"] = np.ones((24, 16), np.int8)
    write_checkpoint(tmp_path, tensors=tensors)
    with pytest.raises(ValueError, match="the weights are not those of its") as error:
        loaded(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}: ")
    assert f"2 missing: {Q}, model.norm.weight" in message
    assert "1 not part of the model: model.layers.0.mlp.bias" in message
    assert "1 of another shape: model.layers.0.mlp.up_proj.weight is [24, 15], expected [24, 16]" in message
    assert "(F32, F16, BF16 are): model.layers.1.mlp.up_proj.weight is I8" in message


def test_a_missing_head_comes_with_the_usual_reason(tmp_path):
    write_checkpoint(tmp_path, tensors=random_tensors(TIED))
    with pytest.raises(ValueError, match=r"1 missing: lm_head\.weight\n.*set tie_word_embeddings"):
        loaded(tmp_path)


def test_a_mesh_that_does_not_divide_a_leaf_is_named(tmp_path):
    write_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"tensor=4 does not divide layers\.attention\.k, .*\(3, 16, 2, 4\)"):
        loaded(tmp_path, mesh=make_mesh(tensor=4))


def test_names_and_parameters_must_have_the_same_leaves(tmp_path):
    config = decoder_config(qkv_bias=False)
    with pytest.raises(ValueError, match=r"only names have \['layers\.attention\.k_bias'"):
        load(tmp_path, config, NAMES)
    with pytest.raises(ValueError, match=r"only parameters have \['layers\.k_norm\.scale'"):
        load(tmp_path, tiny_config(qk_norm=True, qkv_bias=True, tied=False), NAMES)


def test_a_directory_without_weights_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model directory .*absent"):
        loaded(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds no weights: expected model\.safetensors or model\.safetensors\.index"):
        loaded(tmp_path)
    (tmp_path / "adapter.safetensors").touch()
    with pytest.raises(ValueError, match=r"\(there is adapter\.safetensors\)"):
        loaded(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin only: such files can run code"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../elsewhere.safetensors",
        "/etc/weights.safetensors",
        "a/../../b.safetensors",
        "C:\\w.safetensors",
        "w.bin",
        "..\\w.safetensors",
    ],
)
def test_an_index_stays_inside_its_directory(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match=r"names the file .*: a shard is a \.safetensors file inside"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds a JSON list"),
        ("{", "is not valid JSON"),
        ("{}", "no 'weight_map'"),
        ('{"weight_map": {"a": 1}}', "no 'weight_map'"),
    ],
)
def test_a_damaged_index_is_named(tmp_path, text, message):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=rf"model\.safetensors\.index\.json.*{message}"):
        loaded(tmp_path)


def test_an_index_that_promises_more_than_its_shards_is_named(tmp_path):
    write_checkpoint(tmp_path, shards=2)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"looks for ghost in model-00001-of-00002\.safetensors"):
        loaded(tmp_path)
    del content["weight_map"]["ghost"]
    index.write_text(json.dumps(content))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors is absent"):
        loaded(tmp_path)


def test_half_a_shard_is_told_by_its_sizes(tmp_path):
    write_checkpoint(tmp_path, shards=2)
    file = tmp_path / "model-00002-of-00002.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    expected = f"{file} is damaged: its header announces {len(data)} bytes, the file has {len(data) // 2}; fetch it"
    with pytest.raises(ValueError, match=re.escape(expected)):
        loaded(tmp_path)
    file.write_bytes(data[:5])
    with pytest.raises(ValueError, match="5 bytes, too few even for its header"):
        loaded(tmp_path)
    file.write_bytes((7).to_bytes(8, "little") + b"nothing" + data[15:])
    with pytest.raises(ValueError, match=r"00002\.safetensors is damaged: "):
        loaded(tmp_path)


def test_links_out_of_the_directory_are_followed(tmp_path):
    """Download caches keep files elsewhere and link to them."""
    write_checkpoint(tmp_path / "blobs")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "blobs" / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, loaded(tmp_path / "model"), loaded(tmp_path / "blobs"))

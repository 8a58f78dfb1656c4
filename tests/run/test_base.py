"""Checkpoints of adapters: without the weights of a model directory, which are read again and recognised."""

import json
import shutil
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from grpo_jax.cli.build import trained_params
from grpo_jax.cli.main import main
from grpo_jax.config import to_dict
from grpo_jax.learn.state import policy_params
from grpo_jax.mesh import Rules, fetch, make_mesh, sharding
from grpo_jax.models import merge_adapters
from grpo_jax.models.weights import load, read_source
from grpo_jax.run import CheckpointError, Checkpoints, train
from grpo_jax.run.base import fingerprint
from grpo_jax.run.resume import find_start, restore_run
from tests.data.bpe import write_tokenizer
from tests.models.weights.checkpoint import CONFIG, random_tensors, write_checkpoint
from tests.run.test_loop import must_resume, stop_at

RAW = CONFIG | {"vocab_size": 320, "tie_word_embeddings": True}


@pytest.fixture
def on_model(tiny_run, tmp_path):
    """Builds a run of adapters on a model directory, with changes."""
    write_checkpoint(tmp_path / "model", RAW, {n: 0.1 * x for n, x in random_tensors(RAW).items()})
    write_tokenizer(tmp_path / "model")
    rows = [{"prompt": f"{a}+{a}=?", "answer": str(2 * a), "completion": "1"} for a in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def build(*changes, out="run"):
        mine = [f"model.{name}=" for name in ("hidden", "layers", "heads", "kv_heads", "mlp", "head_width")]
        mine += [f"model.path={tmp_path / 'model'}", "data.train_size=", "data.test_size="]
        mine += [f"data.source={tmp_path / 'rows.jsonl'}", "lora.rank=2", "train.steps=2", "checkpoint.every=1"]
        mine += ["rewards=[{function: 'tests.run.rewards:characters'}]", "warmup.steps=0"]
        return tiny_run(*mine, *changes, out=out)

    return build


def stored_arrays(run, step):
    """The paths of the arrays in a checkpoint, by Orbax's own index."""
    index = json.loads((run.out / "checkpoints" / str(step) / "state" / "_METADATA").read_text())
    entries = index["tree_metadata"].values()
    return [
        [part["key"] for part in entry["key_metadata"]]
        for entry in entries
        if entry["value_metadata"]["value_type"] != "None"
    ]


def test_the_base_is_read_again_where_it_began(on_model, tmp_path):
    whole = train(on_model(out="whole"))
    run = on_model()
    train(run, stop=stop_at(1))
    result = train(must_resume(run))
    chex.assert_trees_all_equal(result.state, whole.state)
    with jax.set_mesh(run.mesh):
        params, _ = trained_params(run)
    chex.assert_trees_all_equal(params, policy_params(run.learner, result.state))
    assert not {"base", "reference"} & {path[0] for path in stored_arrays(run, 2)}
    assert ["params", "q", "a"] in stored_arrays(run, 2)
    with Checkpoints(run.out / "checkpoints") as saved:
        assert saved.meta(2)["base"] == fingerprint(result.state.base)


def test_a_run_on_a_mesh_goes_on_without_one(on_model, tmp_path):
    """The base is recognised however it was split, and the adapters come along."""
    run = on_model("mesh.fsdp=2", "mesh.tensor=2")
    on_mesh = train(run, stop=stop_at(1)).state
    alone = on_model()
    with Checkpoints(alone.out / "checkpoints") as saved:
        state = restore_run(alone, saved, find_start(alone, saved))
    chex.assert_trees_all_equal(fetch((state.params, state.base)), fetch((on_mesh.params, on_mesh.base)))
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state.base)} == {1}
    out = tmp_path / "out"
    assert main(["export", str(run.out), str(out), "mesh.fsdp=4", "mesh.tensor=1", "--dtype", "float32"]) == 0
    source = read_source(out)
    merged = merge_adapters(jax.device_get(policy_params(alone.learner, state)))
    exported = load(out, source.config, source.names)
    chex.assert_trees_all_close(exported, jax.tree.map(np.float32, merged), rtol=1e-6)


def test_a_base_that_is_nowhere_else_is_stored(on_model):
    """The warm-up changes it: what the directory holds is not what the adapters were trained on."""
    run = on_model("warmup.steps=2")
    result = train(run)
    with Checkpoints(run.out / "checkpoints") as saved:
        assert saved.meta(2)["base"] is None
    with jax.set_mesh(run.mesh):
        params, _ = trained_params(run)
    chex.assert_trees_all_equal(params, policy_params(run.learner, result.state))
    assert ["base", "embed"] in stored_arrays(run, 2)


def test_adapters_of_a_base_that_is_nowhere_else_do_not_come_out_alone(on_model, tmp_path, capsys):
    """Beside the model of the directory they would be another policy; merged they are what they were."""
    run = on_model("warmup.steps=2", "train.steps=1")
    train(run)
    assert main(["export", str(run.out), str(tmp_path / "alone"), "--adapter"]) == 1
    assert "the weights under these adapters were changed by the warm-up" in capsys.readouterr().err
    assert main(["export", str(run.out), str(tmp_path / "merged")]) == 0
    assert not (tmp_path / "alone").exists()


def test_another_base_is_refused(on_model, tmp_path):
    run = on_model()
    train(run, stop=stop_at(1))
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 4] *= 1.01
    save_file(tensors, file)
    with pytest.raises(
        CheckpointError, match=r"model.path: .* \(1 of 14 differ, first layers.mlp.up\); put the earlier"
    ):
        train(must_resume(run))


def test_a_base_with_other_tensors_is_refused(on_model, tmp_path):
    """The adapters would still fit a model that has a head of its own."""
    run = on_model()
    train(run, stop=stop_at(1))
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": False}))
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"\(1 of 14 differ, first head\)"):
        train(must_resume(on_model()))


def test_adapters_come_out_alone_only_for_the_model_that_they_were_trained_on(on_model, tmp_path, capsys):
    run = on_model()
    train(run, stop=stop_at(1))
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "model", other)
    assert main(["export", str(run.out), str(tmp_path / "same"), "--adapter", f"model.path={other}"]) == 0
    described = json.loads((tmp_path / "same" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(tmp_path / "model")
    write_checkpoint(other, RAW, random_tensors(RAW, seed=1))
    assert main(["export", str(run.out), str(tmp_path / "wrong"), "--adapter", f"model.path={other}"]) == 1
    assert "are not those that the adapters of this checkpoint were trained on" in capsys.readouterr().err


def test_a_checkpoint_from_before_a_field_was_there_is_continued(on_model, tmp_path):
    """What it did not know has its default, which is what was done then; a precision is written out."""
    run = on_model()
    assert run.settings.model.dtype == "bfloat16"
    earlier = json.loads(json.dumps(to_dict(run.settings)))
    del earlier["data"]["url"], earlier["data"]["template_options"], earlier["optimizer"]["critic_learning_rate"]
    del earlier["optimizer"]["decay"], earlier["mesh"]["rules"]
    meta = {"config": earlier, "data": run.train_data.fingerprint(), "cursor": 8, "before": {}, "after": {}}
    saved = types.SimpleNamespace(directory=tmp_path, rejected={}, latest=lambda: 1, meta=lambda step: meta)
    assert find_start(run, saved).cursor == 8
    earlier["data"]["prompt_length"] += 1
    with pytest.raises(CheckpointError, match=r"data\.prompt_length: \d+ in the checkpoint, \d+ now"):
        find_start(run, saved)
    earlier["data"]["of_another_time"] = 1
    with pytest.raises(CheckpointError, match="a run of another version of grpo_jax"):
        find_start(run, saved)


def test_a_fingerprint_is_that_of_the_bits_on_every_mesh(tmp_path):
    write_checkpoint(tmp_path, CONFIG)
    source = read_source(tmp_path)
    alone = load(tmp_path, source.config, source.names)
    mesh = make_mesh(fsdp=4, tensor=2)
    assert fingerprint(load(tmp_path, source.config, source.names, mesh)) == fingerprint(alone)
    bits = np.asarray(alone["layers"]["attention"]["k"]).view(np.uint32).ravel()
    place = np.arange(bits.size, dtype=np.uint64)
    assert fingerprint(alone)["layers.attention.k"] == int((bits * (2 * place + 1)).sum(dtype=np.uint64)) % 2**32
    half = jax.device_put(jnp.ones((8, 8), jnp.bfloat16), sharding(mesh, Rules(), "embed", None))
    assert fingerprint({"x": half}) == {"x": 64**2 * 0x3F80 % 2**32}
    swapped = {**alone, "layers": jax.tree.map(lambda x: x[::-1], alone["layers"])}
    assert fingerprint(swapped)["layers.down"] != fingerprint(alone)["layers.down"]

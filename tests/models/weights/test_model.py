"""A model directory in one call."""

import jax
import numpy as np
import pytest

from grpo_jax.mesh import Rules, make_mesh, sharding
from grpo_jax.models import load_model, open_model
from grpo_jax.models.weights import load, read_source
from tests.data.bpe import TEMPLATE, write_tokenizer
from tests.models.weights.checkpoint import CONFIG, write_checkpoint

RAW = CONFIG | {"vocab_size": 320}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_checkpoint(path, RAW)
    return write_tokenizer(path)


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["text", "path"])
def test_a_directory_is_a_model_its_parameters_and_its_tokenizer(directory, kind):
    model, params, tokenizer = load_model(kind(directory))
    source = read_source(directory)
    jax.tree.map(np.testing.assert_array_equal, params, load(directory, source.config, source.names))
    assert (model.dtype, model.hidden, model.temperature) == ("bfloat16", 16, 1.0)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    assert tokenizer.decode(tokenizer.encode("one plus two")) == "one plus two"


def test_parameters_go_to_a_mesh_by_the_rules_that_were_given(directory):
    rules, mesh = Rules(embed=None, mlp=("fsdp", "tensor")), make_mesh(fsdp=2, tensor=2)
    model, params, _ = load_model(directory, mesh, dtype="float32", rules=rules, temperature=0.7, remat="layer")
    assert (model.dtype, model.rules, model.temperature, model.remat) == ("float32", rules, 0.7, "layer")
    down = params["layers"]["down"]
    assert down.sharding.is_equivalent_to(sharding(mesh, rules, "layers", "mlp", "embed"), 3)
    assert {shard.data.shape for shard in down.addressable_shards} == {(3, 6, 16)}


def test_the_tokenizer_takes_template_system_and_options(directory, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("template " + TEMPLATE)
    changes = (
        {},
        {"template": str(file)},
        {"template": "model", "system": "one two"},
        {"template": "model", "template_options": {"enable_thinking": False}},
    )
    tokenizers = [open_model(directory, **change)[2] for change in changes]
    texts = [tokenizer.decode(tokenizer.encode_prompt("three")) for tokenizer in tokenizers]
    assert texts[0] == "three"
    marks = ("template", "one two", "<think>")
    assert [[mark in text for mark in marks] for text in texts[1:]] == np.eye(3, dtype=bool).tolist()


def test_what_is_wrong_is_said_before_any_weight_is_read(directory, tmp_path):
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "nowhere")
    other = tmp_path / "other"
    write_checkpoint(other, CONFIG | {"vocab_size": 310})
    write_tokenizer(other)
    (other / "model.safetensors").unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=r"other"):
        open_model(other)
    with pytest.raises(TypeError, match="width"):
        open_model(directory, width=3)

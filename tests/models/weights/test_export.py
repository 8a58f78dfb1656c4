"""An exported model is complete: others read its configuration, and reading it again gives the same of everything."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from grpo_jax.config.text import parse
from grpo_jax.data import CharTokenizer, HfTokenizer
from grpo_jax.models import init
from grpo_jax.models.weights import Card, export, load, read_source
from grpo_jax.testing.tiny import tiny_config
from tests.data.bpe import END, PAD, write_tokenizer
from tests.models.weights.checkpoint import CONFIG, random_tensors, write_checkpoint

CARD = Card(base="owner/base@main", step=7, settings="seed: 0\n", figures={"greedy": {"before": 0.125, "after": 0.5}})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory as the hub has them: bfloat16 weights, a configuration, a tokenizer."""
    directory = tmp_path_factory.mktemp("model")
    raw = CONFIG | {"vocab_size": 320, "initializer_range": 0.03, "transformers_version": "4.1.0", "use_cache": True}
    write_tokenizer(directory, generation={"eos_token_id": [END, PAD], "temperature": 0.7})
    write_checkpoint(directory, raw, random_tensors(raw, "bfloat16"), shards=2)
    return directory


def test_load_export_load(model, tmp_path):
    source = read_source(model)
    tokenizer = HfTokenizer(model, vocab=source.config.vocab)
    params = load(source.directory, source.config, source.names)
    config = dataclasses.replace(source.config, dtype="bfloat16", remat="layer")  # as a run would compute it
    export(params, config, tokenizer, tmp_path / "out", card=CARD, source=source, shard_bytes=5000)
    again = read_source(tmp_path / "out")
    assert again.config == source.config
    jax.tree.map(np.testing.assert_array_equal, load(again.directory, again.config, again.names), params)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes()
    assert HfTokenizer(tmp_path / "out", vocab=320).eos_ids == tokenizer.eos_ids == (END, PAD)
    kept = {name: again.raw[name] for name in ("eos_token_id", "max_position_embeddings", "initializer_range")}
    assert kept == {"eos_token_id": 2, "max_position_embeddings": 64, "initializer_range": 0.03}
    assert "transformers_version" not in again.raw
    assert again.raw["rope_theta"] == again.raw["rope_parameters"]["rope_theta"] == 10000.0
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    weight_map = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert sorted(set(weight_map.values())) == shards
    assert len(shards) > 2
    stored = {name: t for shard in shards for name, t in load_file(tmp_path / "out" / shard).items()}
    original = {name: t for file in model.glob("*.safetensors") for name, t in load_file(file).items()}
    assert stored.keys() == original.keys() == weight_map.keys()
    for name, tensor in original.items():
        assert stored[name].dtype == tensor.dtype
        np.testing.assert_array_equal(stored[name], tensor)


@pytest.mark.parametrize(
    "changes",
    [{"qk_norm": True}, {"tied": False, "qkv_bias": True}, {"experts": 4, "experts_per_token": 2, "qk_norm": True}],
)
def test_a_model_that_began_at_random_is_complete_too(tmp_path, changes):
    """transformers reads its configuration, and we read everything."""
    from transformers import AutoConfig

    tokenizer = CharTokenizer("0123456789+-=?\n ,.ab")
    config = tiny_config(vocab=tokenizer.vocab_size, rope_theta=100.0, **changes)
    params = init(config, jax.random.key(0))
    card = dataclasses.replace(CARD, base=None)
    export(params, config, tokenizer, tmp_path / "out", card=card, dtype="float32")
    again = read_source(tmp_path / "out")
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, load(again.directory, again.config, again.names), params)
    theirs = AutoConfig.from_pretrained(tmp_path / "out")
    assert theirs.architectures == [again.family.architecture]
    assert (theirs.hidden_size, theirs.head_dim, theirs.vocab_size) == (16, 4, 23)
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id) == (2, 1, 0)
    assert theirs.rope_parameters["rope_theta"] == 100.0
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    assert HfTokenizer(tmp_path / "out", vocab=config.vocab).encode_prompt("1+2") == tokenizer.encode_prompt("1+2")
    assert "random weights" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_has_the_configuration_and_the_figures(tmp_path):
    settings = "a: |\n  ```\n  b\n  ```\n"
    card = dataclasses.replace(CARD, settings=settings, figures=CARD.figures | {"length": {"after": 12345.678}})
    text = card.text("mine", architecture="Qwen2ForCausalLM", parameters=1234567, dtype="bfloat16")
    _, header, body = text.split("---\n", 2)
    assert parse(header, "card") == {
        "base_model": "owner/base",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["grpo", "grpo_jax"],
    }
    assert body.startswith(
        "\n# mine\n\nA `Qwen2ForCausalLM` of 1,234,567 parameters in bfloat16, trained with grpo_jax"
    )
    assert "from `owner/base@main`: the weights of step 7." in body
    assert "|  | before | after |\n| --- | ---: | ---: |\n| greedy | 0.125 | 0.5 |\n| length |  | 1.235e+04 |\n" in body
    assert f"````yaml\n{settings}````\n" in body
    local = dataclasses.replace(CARD, base="./models/base", figures={})
    text = local.text("mine", architecture="X", parameters=1, dtype="float32")
    assert "base_model" not in text
    assert "from `./models/base`" in text
    assert "The run has recorded none." in text


def test_an_export_that_fails_leaves_nothing(model, tmp_path):
    source = read_source(model)
    tokenizer = HfTokenizer(model)
    params = load(source.directory, source.config, source.names)
    (tmp_path / "taken").write_text("kept")
    with pytest.raises(FileExistsError, match="taken exists and is not an empty directory"):
        export(params, source.config, tokenizer, tmp_path / "taken", card=CARD, source=source)
    with pytest.raises(ValueError, match="dtype: 'int4'; expected one of"):
        export(params, source.config, tokenizer, tmp_path / "out", card=CARD, source=source, dtype="int4")
    changed = dataclasses.replace(source.config, qk_norm=True)
    with pytest.raises(ValueError, match=r"config\.json of 'qwen2' cannot say qk_norm=True"):
        export(params, changed, tokenizer, tmp_path / "out", card=CARD, source=source)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]

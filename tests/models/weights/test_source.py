"""What a model directory says it holds, and every reason not to read it."""

import dataclasses
import json

import numpy as np
import pytest

from grpo_jax.models.families import FAMILIES
from grpo_jax.models.weights import fitting_family, load, read_source
from grpo_jax.testing.tiny import tiny_config
from tests.models.weights.checkpoint import CONFIG, NAMES, decoder_config, write_checkpoint


def test_a_directory_is_read_by_its_family(tmp_path):
    tensors = write_checkpoint(tmp_path)
    source = read_source(str(tmp_path))
    assert source.family is FAMILIES["qwen2"]
    assert source.config == decoder_config()
    assert source.names == NAMES
    assert source.raw == CONFIG
    params = load(source.directory, source.config, source.names)
    np.testing.assert_array_equal(params["embed"], tensors["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {"AutoModel": "own.Own"}}, "has 'auto_map': this model needs code of its own, which is never"),
        ({"quantization_config": {"bits": 4}}, "has 'quantization_config': the weights are quantised"),
        (
            {"model_type": "gpt2"},
            r"model_type is 'gpt2', which is not known; known are qwen2 \(Qwen2ForCausalLM\), .*gemma3_text \(",
        ),
        (
            {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": {}},
            "model_type is 'gemma3', which is not known; of such models only the text model is read, saved by itself "
            "as 'gemma3_text'; known are ",
        ),
        ({"model_type": None}, "model_type is None, which is not known"),
        (
            {"architectures": ["Qwen2ForSequenceClassification"]},
            r"architectures is \['Qwen2ForSequenceClassification'\], which is not known for 'qwen2'; known are qwen2 ",
        ),
        ({"model_type": ["qwen2"]}, r"model_type is \['qwen2'\], which is not known"),
        ({"architectures": "MyQwen2ForCausalLM"}, "architectures is 'MyQwen2ForCausalLM', which is not known"),
        ({"architectures": 3}, "architectures is 3, which is not known for 'qwen2'"),
        ({"rope_scaling": "linear"}, r"config\.json of a 'qwen2' model: rope_scaling is 'linear'; expected a mapping"),
        ({"rms_norm_eps": None}, r"config\.json of a 'qwen2' model: rms_norm_eps is None; expected a number above 0"),
        ({"num_hidden_layers": 0}, r"config\.json: config\.json of a 'qwen2' model: num_hidden_layers"),
    ],
)
def test_what_is_not_read_is_named_with_its_file(tmp_path, change, message):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(ValueError, match=message) as error:
        read_source(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "config.json"))


def test_a_directory_needs_a_configuration(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing: a model directory holds"):
        read_source(tmp_path)
    (tmp_path / "config.json").write_text("{]")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        read_source(tmp_path)


@pytest.mark.parametrize(
    ("changes", "family"),
    [
        ({"qkv_bias": True}, "qwen2"),
        ({"qk_norm": True}, "qwen3"),
        ({}, "llama"),
        ({"qk_norm": True, "experts": 4, "experts_per_token": 2}, "qwen3_moe"),
    ],
)
def test_a_model_without_a_file_finds_its_family(changes, family):
    config = tiny_config(unroll=2, dtype="bfloat16", **changes)
    found = fitting_family(config)
    assert found.name == family
    how = {name: getattr(config, name) for name in ("dtype", "remat", "unroll")}
    assert dataclasses.replace(found.read(found.write(config)), **how) == config


def test_a_model_of_no_family_is_refused_with_every_reason():
    with pytest.raises(ValueError, match=r"no family has a model like this one:\n.*'qwen2'.*\n.*'qwen3'"):
        fitting_family(tiny_config(qkv_bias=True, qk_norm=True))

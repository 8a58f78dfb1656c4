"""The model of a configuration, and what is said of it before anything is compiled."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from grpo_jax.config import ConfigError, load
from grpo_jax.config.build import build_run
from grpo_jax.config.model import build_model
from tests.data.bpe import write_tokenizer
from tests.models.weights.checkpoint import CONFIG, random_tensors, write_checkpoint

RAW = CONFIG | {"vocab_size": 320, "tie_word_embeddings": True}


@pytest.fixture
def folder(tmp_path):
    write_checkpoint(tmp_path / "model", RAW)
    write_tokenizer(tmp_path / "model")
    rows = [{"question": f"{a}+1=?", "answer": f"#### {a + 1}"} for a in range(8)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def config(folder, *changes):
    files = [f"data.source={folder / 'train.jsonl'}", f"data.test={folder / 'test.jsonl'}", f"out={folder / 'out'}"]
    return load("configs/gsm8k.yaml", [f"model.path={folder / 'model'}", "train.prompts=8", *files, *changes])


def test_a_model_that_exists_is_computed_in_bfloat16_and_a_new_one_in_float32(folder):
    assert build_model(config(folder)).shape.dtype == "bfloat16"
    assert build_model(config(folder, "model.dtype=float32")).shape.dtype == "float32"
    assert build_model(load("configs/arithmetic.yaml")).shape.dtype == "float32"
    assert build_model(load("configs/arithmetic.yaml", ["model.dtype=bfloat16"])).shape.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("mesh.tensor=4", "mesh.tensor: value 4; expected a divisor of the model's key/value heads (2); choose 1 or 2"),
        (
            "mesh.tensor=16",
            "mesh.tensor: value 16; expected a divisor of the model's feed-forward width (24); choose 1 or 2",
        ),
        ("mesh.tensor=3", "mesh.tensor: value 3; expected a divisor of the model's vocabulary (320); choose 1 or 2"),
        (
            "mesh.fsdp=32",
            "mesh.fsdp: value 32; expected a divisor of the model's width (16); choose 1 or 2 or 4 or 8 or 16",
        ),
        (
            "mesh={fsdp: 8, tensor: 2, rules: {mlp: [fsdp, tensor], embed: null}}",
            "mesh.fsdp * mesh.tensor: value 16; expected a divisor of the model's feed-forward width (24); "
            "choose 1 or 2 or 3 or 4 or 6 or 8 or 12",
        ),
    ],
)
def test_a_mesh_that_does_not_divide_the_model_is_named(folder, mesh, message):
    with pytest.raises(ConfigError) as error:
        build_model(config(folder, mesh, "train.prompts=32", "train.micro_prompts=", "eval.samples=16"))
    assert message in error.value.problems


def test_weights_that_are_not_the_models_are_named_before_any_is_read(folder):
    tensors = random_tensors(RAW)
    del tensors["model.norm.weight"]
    tensors["model.embed_tokens.weight"] = np.zeros((32, 16), np.float32)
    save_file(tensors, folder / "model" / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: model.norm.weight\n.*embed_tokens.weight is \[32, 16\]"):
        build_run(config(folder))
    assert not (folder / "out").exists()


def test_texts_beyond_what_the_model_has_seen_are_noted(folder):
    limits = "data.prompt_length=40", "data.template="
    within = build_run(config(folder, *limits, "sampling.max_tokens=24"))
    beyond = build_run(config(folder, *limits, "sampling.max_tokens=25"))
    expected = f"is 65, but {folder / 'model' / 'config.json'} has max_position_embeddings 64"
    assert not any("max_position_embeddings" in note for note in within.notes)
    assert any(expected in note for note in beyond.notes)


def test_missing_data_are_asked_for_with_the_command_that_fetches_them(folder):
    """Before the model, which may be a download of gigabytes."""
    (folder / "test.jsonl").unlink()
    with pytest.raises(FileNotFoundError) as error:
        build_run(config(folder, "model.path=owner/absent"))
    missing = folder / "test.jsonl"
    assert str(error.value) == (
        f"there is no dataset file {missing}; to fetch what is missing:\n  curl -fL --create-dirs -o {missing} "
        "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/test.jsonl"
    )
    with pytest.raises(FileNotFoundError, match=r"there is no dataset file .*test.jsonl: check the path"):
        build_run(config(folder, "data.url="))

"""The rules between fields: each is broken alone, and its message names the field, the value and the other side."""

import pytest

from grpo_jax.config import ConfigError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.kv_heads=3"], "model.kv_heads: value 3; expected a divisor of model.heads (4)"),
        (["model.hidden=34"], "model.hidden: value 34; expected a multiple of model.heads (4)"),
        (["model.hidden=36"], "model.hidden / model.heads: value 9; expected an even head width"),
        (["model.head_width=7"], "model.head_width: value 7; expected an even head width"),
        (["data.test=held_out.jsonl"], "data.test: value 'held_out.jsonl'; expected null"),
        (["data.source=gsm8k"], "data.source: value 'gsm8k'; expected 'arithmetic', the path of a .jsonl file, or"),
        (["data.source=a.jsonl", "data.test=b.csv"], "data.test: value 'b.csv'; expected a .jsonl file"),
        (["train.overlong_buffer=100"], "train.overlong_buffer: value 100; expected at most sampling.max_tokens"),
        (
            ["data.template=model"],
            "data.template: value 'model'; expected null, because a new model's tokenizer has no",
        ),
        (
            ["data.template_options.enable_thinking=false"],
            "data.template_options: value {'enable_thinking': False}; expected {}, because a new model's tokenizer has",
        ),
        (["data.train_size="], "data.train_size: value None; expected a number"),
        (["data.test_size="], "data.test_size: value None; expected a number"),
        (["rewards=[]", "data.source=a.jsonl", "data.test="], "rewards: value []; expected at least one reward"),
        (["train.minibatches=3"], "train.minibatches: value 3; expected a divisor of train.prompts (8)"),
        (
            ["train.minibatches=2", "train.micro_prompts=8"],
            "train.micro_prompts: value 8; expected a divisor of train.prompts / train.minibatches (4)",
        ),
        (["mesh.data=16"], "train.prompts: value 8; expected a multiple of mesh.data * mesh.fsdp (16)"),
        (["mesh.data=4", "mesh.fsdp=4"], "train.prompts: value 8; expected a multiple of mesh.data * mesh.fsdp (16)"),
        (
            ["mesh.fsdp=4", "train.minibatches=4"],
            "train.prompts / train.minibatches: value 2; expected a multiple of mesh.data * mesh.fsdp (4)",
        ),
        (
            ["mesh.data=4", "train.micro_prompts=2"],
            "train.micro_prompts: value 2; expected a multiple of mesh.data * mesh.fsdp (4)",
        ),
        (
            ["mesh.data=2", "warmup.steps=1", "warmup.batch=3"],
            "warmup.batch: value 3; expected a multiple of mesh.data * mesh.fsdp (2)",
        ),
        (["mesh.group=3", "eval.samples=3"], "sampling.group: value 4; expected a multiple of mesh.group (3)"),
        (["mesh.group=2", "eval.samples=3"], "eval.samples: value 3; expected a multiple of mesh.group (2)"),
        (["mesh.tensor=2", "model.heads=1", "model.kv_heads=1"], "model.heads: value 1; expected a multiple of"),
        (["mesh.tensor=4"], "model.kv_heads: value 2; expected a multiple of mesh.tensor (4)"),
        (["mesh.fsdp=3", "train.prompts=9"], "model.hidden: value 32; expected a multiple of mesh.fsdp (3)"),
        (["mesh.tensor=2", "model.mlp=63"], "model.mlp: value 63; expected a multiple of mesh.tensor (2)"),
        (
            ["optimizer.schedule=cosine", "optimizer.warmup_steps=20", "train.epochs=2"],
            "optimizer.warmup_steps: value 20; expected below the 20 updates of the run",
        ),
        (
            ["optimizer.schedule=linear", "optimizer.warmup_steps=40", "train.minibatches=4"],
            "optimizer.warmup_steps: value 40; expected below the 40 updates of the run",
        ),
    ],
)
def test_a_contradiction_is_named_with_its_field_and_value(change, overrides, message):
    with pytest.raises(ConfigError) as error:
        change(*overrides)
    assert message in str(error.value)
    for line in error.value.problems:
        assert len(line.split("; ")) == 3, line


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.hidden=34", "model.head_width=8"],
        ["model.kv_heads=1"],
        ["rewards=[]"],
        ["model={path: m}", "data.template=model", "data.template_options.enable_thinking=false"],
        ["data.source=a.jsonl", "data.test=b.jsonl"],
        ["data.source=a.jsonl", "data.train_size=", "data.test_size="],
        ["train.minibatches=2", "train.micro_prompts=2", "mesh.data=2"],
        ["train.minibatches=8"],
        ["mesh.data=2", "mesh.fsdp=4"],
        ["mesh.data=2", "warmup.batch=3"],
        ["mesh.group=4"],
        ["mesh.tensor=2"],
        ["optimizer.schedule=constant", "optimizer.warmup_steps=1000"],
        ["optimizer.schedule=cosine", "optimizer.warmup_steps=9"],
    ],
)
def test_what_fits_is_accepted(change, overrides):
    change(*overrides)


def test_contradictions_come_at_once(change):
    with pytest.raises(ConfigError) as error:
        change("model.kv_heads=3", "train.overlong_buffer=100", "train.minibatches=3", "mesh.tensor=2")
    assert [line.partition(":")[0] for line in error.value.problems] == [
        "model.kv_heads",
        "train.overlong_buffer",
        "train.minibatches",
        "model.kv_heads",
    ]

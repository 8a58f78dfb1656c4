"""`grpo-jax export`: from the checkpoint of a run to a model directory, and the mistakes on the way."""

import dataclasses

import jax
import numpy as np
import pytest

from grpo_jax.cli.export import figures
from grpo_jax.cli.main import main
from grpo_jax.config import load as load_config
from grpo_jax.config.build import build_run
from grpo_jax.data import HfTokenizer
from grpo_jax.models import init
from grpo_jax.models.weights import load, read_source
from grpo_jax.train.checkpoint import Checkpoints
from grpo_jax.train.state import abstract_state, init_state
from tests.train.conftest import TINY

CONFIG = "configs/arithmetic.yaml"
METRICS = [
    '{"kind": "eval", "step": 0, "greedy": 0.1}',
    '{"kind": "train", "step": 1, "reward": 0.2, "left": 9}',
    '{"kind": "eval", "step": 1, "greedy": 0.3}',
    '{"kind": "train", "step": 2, "reward": 0.4, "length": 5.0}',
    '{"kind": "eval", "step": 2, "greedy": 0.5}',
    '{"kind": "train", "step": 3, "reward": 0.6}',
    '{"kind": "eval", "step": 3, "greedy": 0.7}',
]


def checkpointed(overrides):
    """The run with a checkpoint of step 2 and the metrics that lead to it, and its parameters."""
    run = build_run(load_config(CONFIG, overrides))
    state = init_state(run.learner, init(run.learner.model, jax.random.key(3)))
    state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, abstract_state(run.learner, run.mesh)))
    meta = {"cursor": 8, "before": {}, "after": {}, "config": run.description, "data": run.train_data.fingerprint()}
    with Checkpoints(run.out / "checkpoints") as saved:
        saved.save(2, state, meta)
    (run.out / "metrics.jsonl").write_text("\n".join(METRICS) + "\n")
    return run, state.params


def test_the_last_checkpoint_becomes_a_model_directory(tmp_path, capsys):
    overrides = [*TINY, f"out={tmp_path / 'run'}"]
    run, params = checkpointed(overrides)
    target = tmp_path / "models" / "mine"
    assert main(["export", CONFIG, str(target), "--dtype", "float32", *overrides]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'run'}, step 2: {target}\n"
    source = read_source(target)
    assert source.family.name == "qwen3"
    assert source.config == dataclasses.replace(run.learner.model, unroll=1)
    jax.tree.map(np.testing.assert_array_equal, load(target, source.config, source.names), params)
    tokenizer = HfTokenizer(target, vocab=source.config.vocab)
    assert tokenizer.encode_prompt("4+5=?") == run.tokenizer.encode_prompt("4+5=?")
    card = (target / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# mine\n\nA `Qwen3ForCausalLM` of " in card
    assert "|  | step 0 | step 2 |" in card
    assert "| held out, greedy | 0.1 | 0.5 |" in card
    assert "| training, reward |  | 0.4 |" in card
    assert "  hidden: 16\n" in card
    assert main(["export", CONFIG, str(target), *overrides]) == 1
    assert f"{target} exists and is not an empty directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.steps=3"], "DIR: 'train.steps=3' is an override; the order is CONFIG DIR dotted.key=value"),
        (["out", "out={tmp}/run"], "/run/checkpoints has no valid checkpoint"),
        (["configs"], "configs exists and is not an empty directory: choose another, or remove it"),
    ],
)
def test_a_mistake_is_one_message(arguments, message, capsys, tmp_path):
    assert main(["export", CONFIG, *(word.replace("{tmp}", str(tmp_path)) for word in arguments)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("grpo-jax export: ")
    assert message in shown


def test_figures_are_those_up_to_the_step_of_the_checkpoint(tmp_path):
    assert figures(tmp_path, 2) == {}
    (tmp_path / "metrics.jsonl").write_text("\n".join(METRICS) + "\n")
    assert figures(tmp_path, 2) == {
        "held out, greedy": {"step 0": 0.1, "step 2": 0.5},
        "training, reward": {"step 2": 0.4},
        "training, length": {"step 2": 5.0},
    }
    assert figures(tmp_path, 0) == {"held out, greedy": {"step 0": 0.1}}

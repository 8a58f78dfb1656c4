"""`grpo-jax export`: from the checkpoint of a run to a model directory, and the mistakes on the way."""

import dataclasses

import jax
import numpy as np
import pytest

from grpo_jax.cli.export import figures
from grpo_jax.cli.main import main
from grpo_jax.config import load as load_config
from grpo_jax.config import to_dict
from grpo_jax.config.build import build_run
from grpo_jax.data import HfTokenizer
from grpo_jax.learn.state import abstract_state, init_state
from grpo_jax.models import init
from grpo_jax.models.weights import load, read_source
from grpo_jax.run.checkpoint import Checkpoints
from grpo_jax.run.policy import restore_policy
from tests.run.conftest import TINY

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
    meta = {
        "cursor": 8,
        "before": {},
        "after": {},
        "config": to_dict(run.settings),
        "data": run.train_data.fingerprint(),
    }
    with Checkpoints(run.out / "checkpoints") as saved:
        saved.save(2, state, meta)
    (run.out / "metrics.jsonl").write_text("\n".join(METRICS) + "\n")
    return run, state.params


def test_the_last_checkpoint_becomes_a_model_directory(tmp_path, capsys):
    overrides = [*TINY, f"out={tmp_path / 'run'}"]
    run, params = checkpointed(overrides)
    target = tmp_path / "models" / "mine"
    assert main(["export", str(run.out), str(target), "--dtype", "float32"]) == 0
    assert capsys.readouterr().out == f"{run.out / 'checkpoints' / '2'}: {target}\n"
    source = read_source(target)
    assert source.family.name == "qwen3"
    assert source.config == dataclasses.replace(run.learner.model, unroll=1, logprob_chunk=16)
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
    assert main(["export", str(run.out), str(target)]) == 1
    assert f"{target} exists and is not an empty directory" in capsys.readouterr().err


def test_one_of_several_checkpoints_is_chosen_by_its_path(tmp_path, capsys):
    run, params = checkpointed([*TINY, f"out={tmp_path / '2024'}"])  # digits, as a step has
    state = init_state(run.learner, jax.tree.map(lambda x: x + 1, params))
    with Checkpoints(run.out / "checkpoints") as saved:
        meta = saved.meta(2)
        saved.save(3, state, meta)
    for checkpoint, step, moved in ((run.out / "checkpoints" / "2", 2, 0.0), (run.out, 3, 1.0)):
        target = tmp_path / f"model-{step}"
        assert main(["export", str(checkpoint), str(target), "--dtype", "float32"]) == 0
        assert capsys.readouterr().out == f"{run.out / 'checkpoints' / str(step)}: {target}\n"
        source = read_source(target)
        exported = load(target, source.config, source.names)
        np.testing.assert_allclose(exported["embed"], params["embed"] + moved, atol=1e-6)
        assert f"the weights of step {step}." in (target / "README.md").read_text()
    file = run.out / "checkpoints" / "3" / "meta" / "metadata"
    file.write_text(file.read_text() + " ")
    assert main(["export", str(run.out / "checkpoints" / "3"), str(tmp_path / "no")]) == 1
    assert "meta does not have the digest of" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_the_data_may_be_gone(tmp_path):
    """A checkpoint knows its configuration and its policy, which is restored without the rest of the state."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1+1=", "answer": "2"}\n' * 4)
    run, params = checkpointed([*TINY, "warmup.steps=0", f"data.source={rows}", f"out={tmp_path / 'run'}"])
    rows.unlink()
    with Checkpoints(run.out / "checkpoints") as saved:
        found = restore_policy(saved, 2, run.mesh, shape=run.learner.model)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert main(["export", str(run.out), str(tmp_path / "model")]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}", "mesh.fsdp=1"], "DIR: 'mesh.fsdp=1' is a change; the order is CHECKPOINT DIR mesh.fsdp=1"),
        (["{tmp}", "out", "train.steps=3"], "'train.steps=3': the configuration is the checkpoint's; mesh.* and"),
        ([CONFIG, "out"], "arithmetic.yaml is neither a run's directory, such as outputs/gsm8k, nor one of its"),
        (["{tmp}/7", "out"], "/7 is neither a run's directory"),
        (["{tmp}/empty", "out"], "/empty/checkpoints has no valid checkpoint"),
        (["{tmp}/half", "out"], "/half/checkpoints/4/manifest.json is missing: the run ended while"),
        (["{tmp}/half/checkpoints/4", "out"], "/half/checkpoints/4/manifest.json is missing: the run ended while"),
    ],
)
def test_a_mistake_is_one_message(arguments, message, capsys, tmp_path):
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "half" / "checkpoints" / "4").mkdir(parents=True)
    assert main(["export", *(word.replace("{tmp}", str(tmp_path)) for word in arguments)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("grpo-jax export: ")
    assert message in shown


def test_mistakes_beside_a_checkpoint(capsys, tmp_path):
    run, _ = checkpointed([*TINY, f"out={tmp_path / 'run'}"])
    for arguments, message in (
        (["configs"], "configs exists and is not an empty directory: choose another, or remove it"),
        ([str(tmp_path / "m"), "--adapter"], "--adapter: this run has no adapters; leave it out"),
        (
            [str(tmp_path / "m"), "mesh.data=4", "mesh.group=4"],
            "mesh: data=4, group=4, fsdp=1, tensor=1 needs 16 devices",
        ),
    ):
        assert main(["export", str(run.out), *arguments]) == 1
        assert message in capsys.readouterr().err


def test_figures_are_those_up_to_the_step_of_the_checkpoint(tmp_path):
    assert figures(tmp_path, 2) == {}
    (tmp_path / "metrics.jsonl").write_text("\n".join(METRICS) + "\n")
    assert figures(tmp_path, 2) == {
        "held out, greedy": {"step 0": 0.1, "step 2": 0.5},
        "training, reward": {"step 2": 0.4},
        "training, length": {"step 2": 5.0},
    }
    assert figures(tmp_path, 0) == {"held out, greedy": {"step 0": 0.1}}

"""The commands: each mistake in one message before anything is compiled, and a whole run from a shell."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from grpo_jax.cli.main import main
from tests.run.conftest import TINY

CONFIG = "configs/arithmetic.yaml"


@pytest.fixture
def compiled():
    """The programs that the backend compiled during a test."""
    names = []
    listener = lambda name, *_, **__: names.append(name) if "backend_compile" in name else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    yield names
    jax.monitoring.unregister_event_duration_listener(listener)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.stepps=3"], "train.stepps: unknown"),
        (["train.steps=many"], "train.steps: value 'many'; expected an integer"),
        (["data.prompt_length=5"], "data.prompt_length"),
        (["sampling.max_tokens=20"], "set sampling.max_tokens to at least"),
        (["sampling.group=1"], "sampling.group: value 1; expected at least 2"),
        (["mesh.data=3"], "train.prompts: value 32; expected a multiple of mesh.data * mesh.fsdp (3)"),
        (["mesh.data=16"], "mesh: data=16, group=1, fsdp=1, tensor=1 needs 16 devices, this process sees 8"),
        (
            ["mesh.tensor=2", 'data.alphabet="0123456789+-=?,:; "'],
            "mesh.tensor: value 2; expected a divisor of the model's vocabulary (21)",
        ),
        (["objective=grppo"], "did you mean 'grpo'"),
        (["objective={preset: grpo, kl: k4}"], "objective.kl"),
        (["rewards=[{function: arithmetic.anser}]"], "arithmetic.answer"),
        (["data.source=nowhere.jsonl"], "nowhere.jsonl"),
        (["resume=must"], "resume: 'must', but"),
        (["sampling.top_k=5"], "sampling.top_k"),
        (["data.alphabet=abc"], "abc"),
    ],
)
def test_a_mistake_is_one_message_before_anything_is_compiled(overrides, message, compiled, capsys, tmp_path):
    assert main(["train", CONFIG, f"out={tmp_path / 'run'}", *overrides]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("grpo-jax train: ")
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert not compiled


@pytest.mark.parametrize("command", ["eval", "sample"])
def test_a_command_that_needs_a_checkpoint_says_where_it_looked(command, capsys, tmp_path):
    prompt = ["--prompt", "47+85-29=?"] if command == "sample" else []
    assert main([command, CONFIG, f"out={tmp_path / 'run'}", *prompt]) == 1
    assert f"{tmp_path / 'run' / 'checkpoints'} has no valid checkpoint" in capsys.readouterr().err


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["train", CONFIG, "--steps", "5"])
    assert exit.value.code == 2
    assert "unknown option --steps; changes are written dotted.key=value" in capsys.readouterr().err


def test_a_missing_configuration_is_named(capsys):
    assert main(["train", "configs/nothing.yaml"]) == 1
    assert "configs/nothing.yaml" in capsys.readouterr().err


def shell(*arguments, **options):
    """Runs the installed command."""
    program = Path(sys.executable).with_name("grpo-jax")
    command = [str(program) if program.exists() else shutil.which("grpo-jax"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def test_train_eval_and_sample_from_a_shell(tmp_path):
    overrides = [*TINY, f"out={tmp_path / 'run'}", "train.steps=2"]
    trained = shell("train", CONFIG, *overrides)
    assert trained.returncode == 0, trained.stderr
    assert "held-out accuracy" in trained.stdout
    assert str(tmp_path / "run") in trained.stdout
    evaluated = shell("eval", CONFIG, *overrides)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "step 2, 6 held-out problems" in evaluated.stdout
    for measure in ("greedy", "sampled", "pass@2", "pass@4", "maj@4"):
        assert measure in evaluated.stdout
    sampled = shell("sample", CONFIG, "--prompt", "4+5=?", "--prompt", "1+1=?", "--n", "3", *overrides)
    assert sampled.returncode == 0, sampled.stderr
    assert [line[:5] for line in sampled.stdout.splitlines()] == ["4+5=?"] * 3 + ["1+1=?"] * 3
    wrong = shell("sample", CONFIG, "--prompt", "four", *overrides)
    assert wrong.returncode == 1
    assert "'f'" in wrong.stderr


def test_a_stopped_command_saves_and_continues(tmp_path):
    """SIGTERM in the middle: the state of that step is on disk, and the same command goes on behind it."""
    overrides = [*TINY, f"out={tmp_path / 'run'}", "train.steps=2000", "checkpoint.every=100000"]
    program = [sys.executable, "-m", "grpo_jax.cli.main", "train", CONFIG, *overrides]
    shown = []
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            shown.append(line)
            if line.split()[:1] == ["5"]:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 130
    stopped = int(shown[-1].split("stopped at step ")[1].split(";")[0])
    assert 5 <= stopped < 2000
    assert (tmp_path / "run" / "checkpoints" / str(stopped) / "manifest.json").exists()
    again = shell("train", CONFIG, *overrides, f"train.steps={stopped + 1}")
    assert again.returncode == 0, again.stderr
    assert f"continuing from step {stopped}" in again.stdout

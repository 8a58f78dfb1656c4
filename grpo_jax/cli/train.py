"""`grpo-jax train`: a run from its configuration, and the table it ends with."""

from __future__ import annotations

import argparse
import signal
import threading
import time

from grpo_jax.cli.build import checked_run
from grpo_jax.cli.error import UserError
from grpo_jax.config import dump, load
from grpo_jax.run import CheckpointError, Result, Run, train


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status of a training run."""
    started = time.monotonic()
    config = load(arguments.config, arguments.overrides)
    built = checked_run(config)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        result = train(built, stop=stop.is_set)
    except (CheckpointError, FloatingPointError, ValueError) as error:
        raise UserError(str(error)) from error
    (built.out / "config.yaml").write_text(dump(config))
    if result.step < built.settings.train.steps:
        print(f"stopped at step {result.step}; the same command continues from there")
        return 130
    print(summary(built, result, time.monotonic() - started))
    return 0


def summary(run: Run, result: Result, seconds: float) -> str:
    """Returns the closing table: held-out accuracy before and after, and where the outputs are."""
    lines = [""]
    if result.before:
        lines.append(f"{'held-out accuracy':<20}{'before':>9}{'after':>9}")
        lines += [f"{name:<20}{result.before[name]:>9.1%}{result.after[name]:>9.1%}" for name in result.after]
    minutes, rest = divmod(round(seconds), 60)
    files = "metrics.jsonl, samples.jsonl, tensorboard/, checkpoints/, curves.png"
    lines += ["", f"{result.step} steps; {minutes}:{rest:02d} for this command", f"{run.out}: {files}, config.yaml"]
    return "\n".join(lines)

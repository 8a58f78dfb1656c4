"""Held-out accuracy of the embedded default before and after GRPO, on several seeds, as a Markdown table.

What it does: runs `grpo-jax train configs/arithmetic.yaml seed=N` in a process of its own for each seed, so that each
pays for its own compilation, and reads the accuracies from metrics.jsonl. What it leaves out: nothing is tuned here.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from grpo_jax.run.record import read_metrics

OUT = Path("outputs/seeds")


def main(seeds: list[str]) -> None:
    print("| seed | greedy before | greedy after | sampled before | sampled after | seconds |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for seed in seeds:
        out = OUT / seed
        command = [Path(sys.executable).with_name("grpo-jax"), "train", "configs/arithmetic.yaml"]
        started = time.monotonic()
        subprocess.run([*command, f"seed={seed}", f"out={out}", "resume=never"], check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
        first, *_, last = read_metrics(out, "eval")
        cells = [f"{row[name]:.1%}" for name in ("greedy", "sampled") for row in (first, last)]
        print(f"| {seed} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["0", "1", "2"])

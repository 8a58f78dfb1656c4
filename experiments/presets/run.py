"""Held-out accuracy before and after training, for every preset, as a Markdown table and a picture.

What it does: runs `grpo-jax train configs/arithmetic.yaml objective=NAME` in a process of its own for each preset, all
else equal, and reads metrics.jsonl. What it leaves out: nothing is tuned for a preset, and one seed says nothing about
which is better.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure

from grpo_jax.core import presets
from grpo_jax.run.record import read_metrics

HERE = Path(__file__).parent
OUT = Path("outputs/presets")
STEPS = 60
NAMES = [name for name in presets.__all__ if name not in ("ppo_clip", "sft")]
"""ppo_clip is GRPO without its KL term, and sft has no rewards: the warm-up of every run is that."""


def main(names: list[str]) -> None:
    print("| preset | greedy before | greedy after | sampled before | sampled after |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for name in names:
        out = OUT / name
        command = [Path(sys.executable).with_name("grpo-jax"), "train", "configs/arithmetic.yaml"]
        changes = [f"objective={name}", f"train.steps={STEPS}", "eval.every=10", f"out={out}", "resume=never"]
        subprocess.run([*command, *changes], check=True, stdout=subprocess.DEVNULL)
        first, *_, last = read_metrics(out, "eval")
        cells = [f"{row[kind]:.1%}" for kind in ("greedy", "sampled") for row in (first, last)]
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)
    if names == NAMES:
        draw()


def draw() -> None:
    """Draws the sampled accuracy of every run against its step, one small panel for each preset."""
    columns = 6
    rows = -(-len(NAMES) // columns)
    figure = Figure(figsize=(2.3 * columns, 2.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True).ravel()
    curves = {name: read_metrics(OUT / name, "eval") for name in NAMES}
    for panel, name in zip(panels, NAMES, strict=False):
        for other in curves.values():
            panel.plot([r["step"] for r in other], [r["sampled"] for r in other], color="0.85", linewidth=0.8)
        panel.plot([r["step"] for r in curves[name]], [r["sampled"] for r in curves[name]], color="tab:blue")
        panel.set_title(name, fontsize=10)
        panel.set_ylim(0.3, 1.0)
        panel.grid(alpha=0.3)
    for panel in panels[len(NAMES) :]:
        panel.set_visible(False)
    figure.supxlabel("step")
    figure.supylabel("held-out accuracy, sampled")
    figure.savefig(HERE / "accuracy.png", dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:] or NAMES)

"""The picture of a run, drawn from its metrics.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from grpo_jax.run.record import read_metrics

PANELS = (("reward", "reward"), ("accuracy", None), ("kl", "kl"), ("entropy", "entropy"), ("length", "length"))
UNITS = {"reward": "mean", "accuracy": "share right", "kl": "nats per token", "entropy": "nats per token"}


def draw_curves(out: Path) -> Path | None:
    """Returns the path of curves.png: reward, accuracy, KL, entropy and length against the step. None without rows."""
    rows, held_out = read_metrics(out, "train"), read_metrics(out, "eval")
    if not rows:
        return None
    figure = Figure(figsize=(15, 3.2), layout="constrained")
    for axes, (title, metric) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        if metric is None:
            _accuracy(axes, rows, held_out)
        else:
            values = [row.get(metric, row.get("approx_kl")) for row in rows]
            axes.plot([row["step"] for row in rows], values, color="tab:blue")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_ylabel(UNITS.get(title, "tokens"))
        axes.grid(alpha=0.3)
    path = out / "curves.png"
    figure.savefig(path, dpi=110)
    return path


def _accuracy(axes: Any, rows: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> None:
    axes.plot([row["step"] for row in rows], [row["success"] for row in rows], color="tab:gray", label="training")
    for name, color in (("sampled", "tab:blue"), ("greedy", "tab:orange")):
        axes.plot(
            [r["step"] for r in held_out], [r[name] for r in held_out], "o-", color=color, label=f"held out, {name}"
        )
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=8, loc="lower right")

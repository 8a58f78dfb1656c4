"""The model card: README.md of an exported model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from grpo_jax.models.weights.hub import hub_id


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What a card says of the run.

    Attributes:
      base: the model that the run began with, a hub id or a path; None for one that began at random.
      step: updates of the policy behind the weights.
      settings: the run's configuration, as YAML.
      figures: row -> column -> value, such as `{"greedy": {"before": 0.1, "after": 0.8}}`.
    """

    base: str | None
    step: int
    settings: str
    figures: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    def text(self, name: str, *, architecture: str, parameters: int, dtype: str) -> str:
        """Returns the Markdown, with the header that the hub reads."""
        began = f"`{self.base}`" if self.base else "random weights"
        header = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [grpo, grpo_jax]"]
        # The hub takes ids of its own, and would stumble over a path.
        if self.base and (found := hub_id(self.base)):
            header.insert(0, f"base_model: {found[0]}")
        fence = "```"
        while fence in self.settings:
            fence += "`"
        parts = [
            "\n".join(["---", *header, "---"]),
            f"# {name}",
            f"A `{architecture}` of {parameters:,} parameters in {dtype}, trained with grpo_jax from {began}: "
            f"the weights of step {self.step}.",
            "## Figures",
            _table(self.figures) if self.figures else "The run has recorded none.",
            "## Configuration",
            f"{fence}yaml\n{self.settings.rstrip()}\n{fence}",
        ]
        return "\n\n".join(parts) + "\n"


def _table(figures: Mapping[str, Mapping[str, float]]) -> str:
    columns = list(dict.fromkeys(column for row in figures.values() for column in row))
    lines = [["", *columns], ["---", *("---:" for _ in columns)]]
    for name, row in figures.items():
        lines.append([name, *(f"{row[column]:.4g}" if column in row else "" for column in columns)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

"""Writes the table of families into grpo_jax/models/README.md.

python -m tests.models.golden.table
"""

from pathlib import Path

from tests.models.golden.compare import figures, model
from tests.models.golden.variants import STATEMENTS, VARIANTS

README = Path(__file__).resolve().parents[3] / "grpo_jax/models/README.md"
BEGIN, END = "<!-- table of families -->\n", "<!-- end -->\n"


def table():
    """The table, one row per golden file."""
    rows = [
        "| family | what it shows | logits | log-probs | gradients | greedy tokens |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in VARIANTS:
        found, family = figures(name), model(name)[0].name
        numbers = " | ".join(f"{value:.0e}" for value in (found.logit, found.logp, found.gradient))
        rows.append(f"| `{family}` | {STATEMENTS[name]} | {numbers} | {found.greedy:.0%} |")
    return "\n".join(rows) + "\n"


def main():
    """Replaces what stands between the two marks."""
    before, rest = README.read_text().split(BEGIN)
    README.write_text(before + BEGIN + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()

"""Rewards of GSM8K: the final number, and R1's layout of thinking and answer.

The data set's own `answer` column is a worked solution whose last line is `#### number` (arXiv:2110.14168).
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

_NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?:(?<![\w)])-)?\$?\.\d+")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_INSIDE = r"(?:(?!</?(?:think|answer)>).)+"
_R1 = re.compile(rf"\s*<think>{_INSIDE}</think>\s*<answer>{_INSIDE}</answer>\s*", re.DOTALL)


def answer(prompts: list[Any], completions: list[str], answer: list[str], **_: Any) -> list[float | None]:
    """Returns 1 where the final number of a completion is that of the solution, 0 elsewhere, None without a solution.

    The final number stands behind the last `####`, else in the last `<answer>` or `\\\\boxed{}`: the first one there,
    or that behind the last `=` of an equation. Without such a mark it is the last number of the text. Numbers are
    compared as numbers: `$1,000.00` is 1000.

    >>> answer(["?"] * 4, ["so 72.", "#### 71", "It is <answer>$72.0</answer>.", "none"], ["48+24=72\\n#### 72"] * 4)
    [1.0, 0.0, 1.0, 0.0]
    """
    scores: list[float | None] = []
    for completion, solution in zip(completions, answer, strict=True):
        expected = _final_number(solution)
        scores.append(None if expected is None else float(_final_number(completion) == expected))
    return scores


def layout(prompts: list[Any], completions: list[str], **_: Any) -> list[float]:
    """Returns 1 where a completion is one `<think>...</think>` and one `<answer>...</answer>`, and 0 elsewhere.

    Reference: DeepSeek-R1, arXiv:2501.12948, section 2.2.2 (format rewards).

    >>> layout(["?"] * 3, ["<think>48+24</think> <answer>72</answer>", "72", "<think></think><answer>72</answer>"])
    [1.0, 0.0, 0.0]
    """
    return [float(_R1.fullmatch(completion) is not None) for completion in completions]


def _final_number(text: str) -> Fraction | None:
    """Returns the number that a text ends with, exactly; None without any."""
    marked = text.rpartition("####")[2] if "####" in text else None
    for pattern in (_ANSWER, _BOXED):
        if marked is None and (found := pattern.findall(text)):
            marked = found[-1]
    numbers = _NUMBER.findall(text if marked is None else marked)
    if not numbers:
        return None
    chosen = numbers[-1]
    if marked is not None:
        result = _NUMBER.findall(marked.rpartition("=")[2])
        chosen = (result or numbers)[0]
    return Fraction(chosen.replace(",", "").replace("$", ""))

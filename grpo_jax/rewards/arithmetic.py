"""Rewards of the embedded arithmetic task: the answer, every step, and the form of the worked solution."""

from __future__ import annotations

import itertools
import re
from typing import Any

_COLUMN = r"\d+(?:\+\d=\d+(?:\+[01]=\d+)?|-\d=\d+(?:-[01]=\d+)?)"
_OPERATION = rf"{_COLUMN}(?:,{_COLUMN})*:\d+"
_SOLUTION = re.compile(rf"{_OPERATION}(?:;{_OPERATION})*")


def answer(prompts: list[str], completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """Returns 1 where the text after the last `:` is exactly the expected answer, and 0 elsewhere.

    >>> answer(["47+85=?"] * 3, ["7+5=12,4+8=12+1=13:132", "132", "7+5=12,4+8=12+1=13:0132"], ["132"] * 3)
    [1.0, 0.0, 0.0]
    """
    pairs = zip(completions, answer, strict=True)
    return [float(":" in completion and _result(completion) == expected) for completion, expected in pairs]


def steps(prompts: list[str], completions: list[str], **_: Any) -> list[list[tuple[int, float]]]:
    """Returns one (end, value) per operation of the problem and completion.

    Operations are what `;` separates. The value is 1 when the text after the operation's last `:` is exactly the
    problem's own running value there, whatever came before: an error that a later one cancels is charged once.
    `end` counts the completion's characters up to the end of that operation's result, without the `;`.
    An operation that the completion lacks has the value 0 at the completion's end; surplus ones are not scored.

    >>> steps(["47+85-29=?"], ["7+5=12,4+8=12+0=12:122;12-9=3,12-2=10-0=10:103"])
    [[(22, 0.0), (46, 1.0)]]
    """
    return [_steps(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


def format(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """Returns 1 where the whole completion has the form of a worked solution, right or wrong, and 0 elsewhere.

        solution  = operation (";" operation)*
        operation = column ("," column)* ":" number
        column    = number "+" digit "=" number ["+" bit "=" number]
                  | number "-" digit "=" number ["-" bit "=" number]

    >>> format(["47+85=?"] * 2, ["7+5=12,4+8=12+0=12:122", "7+5=12,4+8=12-1=11:112"])
    [1.0, 0.0]
    """
    return [float(_SOLUTION.fullmatch(completion) is not None) for completion in completions]


def _steps(prompt: str, completion: str) -> list[tuple[int, float]]:
    values = list(itertools.accumulate(int(word) for word in re.findall(r"[+-]?\d+", prompt)))[1:]
    operations = completion.split(";")
    ends = list(itertools.accumulate(len(text) + (i > 0) for i, text in enumerate(operations)))
    scored = []
    for i, value in enumerate(values):
        if i < len(operations):
            right = ":" in operations[i] and _result(operations[i]) == str(value)
            scored.append((ends[i], float(right)))
        else:
            scored.append((len(completion), 0.0))
    return scored


def _result(text: str) -> str:
    return text.rpartition(":")[2]

"""The embedded task: short sums with worked solutions, and demonstrations that sometimes forget to carry.

A problem is `47+85-29=?`: operands of a fixed number of digits, results that never drop below zero.
Its worked solution does column arithmetic from the units upward, one operation after the other:

    7+5=12,4+8=12+1=13:132;12-9=3,13-2=11-1=10:103

Each operation writes one column per operand digit, then `:` and the result; `;` separates operations.
The top column takes whatever is left of the running value (the 13 of 132), so every operation has the same
number of columns. A column reads its two digits, the carry, and nothing else; the first has no carry. A digit
that is too small borrows by a leading 1 (`12-9`). The result is the last digit of every column, read downward,
with the top column whole and without leading zeros.

A carry is one decision: `+1` or `+0` (after a borrow `-1` or `-0`) behind the sum of the next column's digits.
Forgetting it gives a different value, from which the text goes on consistently. The generator admits only
problems in which forgotten carries neither make a value negative nor cancel each other, so that
**an answer is right exactly when no carry was forgotten**.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

import numpy as np

from grpo_jax.data.dataset import Dataset
from grpo_jax.data.settings import DataSettings
from grpo_jax.data.source import Source
from grpo_jax.errors import problem
from grpo_jax.rewards import arithmetic as rewards

ALPHABET = "0123456789+-=?,:;"
"""Every character of prompts and worked solutions."""

_PROMPT = re.compile(r"\d+([+-]\d+)+=\?")
_Column = tuple[int, int, int, int]


def solution(prompt: str, *, forget: Sequence[bool] = ()) -> str:
    """Returns the worked solution of `prompt`.

    >>> solution("47+85-29=?")
    '7+5=12,4+8=12+1=13:132;12-9=3,13-2=11-1=10:103'
    >>> solution("47+85-29=?", forget=[False, True])
    '7+5=12,4+8=12+1=13:132;12-9=3,13-2=11-0=11:113'

    Args:
      prompt: a problem such as `47+85-29=?`.
      forget: one flag per place where a carry can occur, operation by operation and from the units upward:
        `operations * (digits - 1)` flags. True writes 0 for the carry if there is one. Empty forgets nothing.

    Raises:
      ValueError: the prompt is no problem, `forget` has another length, or a value becomes negative.
    """
    value, steps, digits = parse(prompt)
    places = len(steps) * (digits - 1)
    if len(forget) not in (0, places):
        raise ValueError(f"forget has {len(forget)} flags for {prompt!r}: give {places}, or none")
    parts = []
    for i, step in enumerate(steps):
        columns = _columns(value, step, digits, forget[i * (digits - 1) : (i + 1) * (digits - 1)])
        value = _value(columns)
        if value < 0:
            raise ValueError(f"{prompt!r} has a negative running value: make_split avoids these problems")
        sign = "+" if step > 0 else "-"
        written = []
        for place, (top, bottom, carry, result) in enumerate(columns):
            carried = f"{sign}{carry}={result}" * (place > 0)
            written.append(f"{top}{sign}{bottom}={top + int(f'{sign}{bottom}')}{carried}")
        parts.append(f"{','.join(written)}:{value}")
    return ";".join(parts)


def demonstrations(prompts: Sequence[str], *, seed: int | Sequence[int], wrong: float) -> list[str]:
    """Returns one worked solution per prompt, in which each carry is forgotten with probability `wrong`.

    Args:
      prompts: problems of one shape (as many operations and digits in each).
      seed: fixes the carries that are forgotten; several integers, such as (seed, step), are one seed.
      wrong: the share of carries and borrows that are forgotten, independently of each other.

    Raises:
      ValueError: `wrong` is not a probability, or the prompts differ in shape.
    """
    if not 0.0 <= wrong <= 1.0:
        raise ValueError(f"wrong={wrong} is not a probability: give a number from 0 to 1")
    if not prompts:
        return []
    _, steps, digits = parse(prompts[0])
    drawn = np.random.default_rng(seed).random((len(prompts), len(steps) * (digits - 1))) < wrong
    return [solution(prompt, forget=row) for prompt, row in zip(prompts, drawn.tolist(), strict=True)]


def make_split(seed: int, *, train: int, test: int, operations: int = 2, digits: int = 2) -> tuple[Dataset, Dataset]:
    """Returns two disjoint datasets of distinct problems with the columns `prompt` and `answer`.

    Args:
      seed: fixes both datasets.
      train: the number of problems in the first dataset.
      test: the number of problems in the second.
      operations: additions and subtractions per problem.
      digits: digits per operand; the first is not zero.

    Raises:
      ValueError: an argument is too small, or there are fewer distinct problems than asked for.
    """
    for name, size, least in (
        ("train", train, 1),
        ("test", test, 0),
        ("operations", operations, 1),
        ("digits", digits, 1),
    ):
        if size < least:
            raise ValueError(f"{name}={size} is too small: give at least {least}")
    wanted = train + test
    low, high = 10 ** (digits - 1), 10**digits
    space = 2**operations * (high - low) ** (operations + 1)
    # Codes are drawn without replacement, so problems are distinct; when too few pass, more are drawn afresh.
    drawn = min(space, 3 * wanted)
    while True:
        found = []
        for code in np.random.default_rng(seed).choice(space, drawn, replace=False).tolist():
            if len(found) == wanted:
                break
            operands = []
            for _ in range(operations + 1):
                code, digit = divmod(code, high - low)
                operands.append(low + digit)
            signs = [1 - 2 * (code >> i & 1) for i in range(operations)]
            steps = [sign * operand for sign, operand in zip(signs, operands[1:], strict=True)]
            if _admissible(operands[0], steps, digits):
                prompt = f"{operands[0]}{''.join(f'{step:+d}' for step in steps)}=?"
                found.append({"prompt": prompt, "answer": str(operands[0] + sum(steps))})
        if len(found) == wanted:
            return Dataset(tuple(found[:train])), Dataset(tuple(found[train:]))
        if drawn == space:
            raise ValueError(
                f"train={train} and test={test} ask for {wanted} problems, but only {len(found)} distinct ones have "
                f"operations={operations} and digits={digits}: ask for fewer, or raise operations or digits"
            )
        drawn = min(space, 4 * drawn)


def parse(prompt: str) -> tuple[int, list[int], int]:
    """Returns the first operand, the signed other operands, and the number of digits of each operand.

    >>> parse("47+85-29=?")
    (47, [85, -29], 2)

    Raises:
      ValueError: the text is no problem, or its operands differ in length.
    """
    if not _PROMPT.fullmatch(prompt):
        raise ValueError(f"{prompt!r} is not a problem such as '47+85-29=?'")
    widths = {len(word) for word in re.findall(r"\d+", prompt)}
    if len(widths) > 1:
        raise ValueError(f"{prompt!r} has operands of {sorted(widths)} digits: give all the same number")
    first, *steps = (int(word) for word in re.findall(r"[+-]?\d+", prompt))
    return first, steps, widths.pop()


def _columns(value: int, step: int, digits: int, forget: Sequence[bool]) -> list[_Column]:
    """Returns (upper number, lower digit, carry in, result) per column, units first."""
    operand, sign, carry, columns = abs(step), 1 if step > 0 else -1, 0, []
    for place in range(digits):
        top, bottom = value // 10**place, operand // 10**place % 10
        last = place == digits - 1
        if not last:
            top %= 10
            if top + sign * (bottom + carry) < 0:
                top += 10
        result = top + sign * (bottom + carry)
        columns.append((top, bottom, carry, result))
        if not last:
            # A sum carries when it needs a second digit; a difference, when its upper digit had to borrow.
            happens = result >= 10 if sign > 0 else top >= 10
            carry = int(happens and not (forget and forget[place]))
    return columns


def _value(columns: Sequence[_Column]) -> int:
    """Returns the number that the columns write: the last digit of each, with the top one whole."""
    *lower, top = (result for _, _, _, result in columns)
    return top * 10 ** len(lower) + sum(result % 10 * 10**place for place, result in enumerate(lower))


def _admissible(first: int, steps: Sequence[int], digits: int) -> bool:
    """Returns whether forgotten carries can neither make a value negative nor restore the right answer."""
    patterns = list(itertools.product((False, True), repeat=digits - 1))
    reached = {(first, False)}  # values, and whether a slip lies behind them
    true = first
    for step in steps:
        true += step
        reached = {
            (after, slipped or after != value + step)
            for value, slipped in reached
            for after in (_value(_columns(value, step, digits, pattern)) for pattern in patterns)
        }
        if min(value for value, _ in reached) < 0:
            return False
    return (true, True) not in reached


def _check(settings: DataSettings) -> Iterator[str]:
    if settings.test is not None:
        expected = "null, because arithmetic makes its own held-out problems"
        yield problem("data.test", settings.test, expected, "drop it")
    if settings.url is not None:
        yield problem("data.url", settings.url, "null, because arithmetic makes up its problems", "drop it")
    for field, value in (("data.train_size", settings.train_size), ("data.test_size", settings.test_size)):
        if value is None:
            yield problem(field, value, "a number, because arithmetic makes up its problems", f"set {field}")


def _read(settings: DataSettings, seed: int) -> tuple[Dataset, Dataset]:
    return make_split(
        seed,
        train=settings.train_size,
        test=settings.test_size,
        operations=settings.operations,
        digits=settings.digits,
    )


def _demonstrate(data: Dataset, rows: Sequence[int], *, seed: Sequence[int], wrong: float) -> list[str]:
    return demonstrations(data.prompts(rows), seed=seed, wrong=wrong)


ARITHMETIC = Source(
    read=_read,
    check=_check,
    demonstrate=_demonstrate,
    rewards={"arithmetic.answer": rewards.answer},
    alphabet=ALPHABET,
)
"""The task as a source of data."""

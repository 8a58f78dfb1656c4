"""The rewards of the arithmetic task against demonstrations whose mistakes are known."""

import re

import pytest

from grpo_jax.data.arithmetic import demonstrations, make_split, parse, solution
from grpo_jax.rewards import arithmetic

PROMPT = "47+85-29=?"
RIGHT = "7+5=12,4+8=12+1=13:132;12-9=3,13-2=11-1=10:103"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (RIGHT, 1.0),
        (":103", 1.0),
        ("103", 0.0),
        (RIGHT + " ", 0.0),
        (RIGHT + ":", 0.0),
        (RIGHT.replace(":103", ":0103"), 0.0),
        (RIGHT[:-1], 0.0),
        (RIGHT + ";1+1=2:2", 0.0),
        ("", 0.0),
    ],
)
def test_answer_reads_what_follows_the_last_colon(completion, expected):
    assert arithmetic.answer([PROMPT], [completion], ["103"]) == [expected]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (RIGHT, [(22, 1.0), (46, 1.0)]),
        ("7+5=12,4+8=12+0=12:122;12-9=3,12-2=10-1=9:93", [(22, 0.0), (44, 0.0)]),
        ("7+5=12,4+8=12+0=12:122;12-9=3,12-2=10-0=10:103", [(22, 0.0), (46, 1.0)]),
        (":132", [(4, 1.0), (4, 0.0)]),
        (":132;", [(4, 1.0), (5, 0.0)]),
        (":132;103", [(4, 1.0), (8, 0.0)]),
        (":132;:103;:5", [(4, 1.0), (9, 1.0)]),
        (":0132", [(5, 0.0), (5, 0.0)]),
        ("", [(0, 0.0), (0, 0.0)]),
    ],
)
def test_steps_score_each_operation_at_its_end(completion, expected):
    assert arithmetic.steps([PROMPT], [completion], answer=["103"]) == [expected]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (RIGHT, 1.0),
        ("7+5=12,4+8=12+0=12:122", 1.0),
        ("9+9=99:0", 1.0),
        (RIGHT + ";", 0.0),
        (RIGHT + "\n", 0.0),
        ("x" + RIGHT, 0.0),
        ("7+5=12,4+8=12+1=13", 0.0),
        ("7+5=12,4+8=12-1=13:132", 0.0),
        ("7+5=12,4+8=12+2=14:142", 0.0),
        ("7+15=22:22", 0.0),
        ("", 0.0),
    ],
)
def test_format_accepts_worked_solutions_only(completion, expected):
    assert arithmetic.format([PROMPT], [completion], answer=["103"]) == [expected]


@pytest.mark.parametrize("operations", [2, 3])
def test_rewards_agree_with_the_task(operations):
    data, _ = make_split(3, train=300, test=0, operations=operations, digits=2)
    prompts, answers = data.prompts(range(300)), data.columns(range(300))["answer"]
    right = [solution(prompt) for prompt in prompts]
    assert arithmetic.answer(prompts, right, answers) == [1.0] * 300
    assert arithmetic.format(prompts, right) == [1.0] * 300
    for completion, steps in zip(right, arithmetic.steps(prompts, right), strict=True):
        ends = [match.end() for match in re.finditer(r":\d+", completion)]
        assert steps == [(end, 1.0) for end in ends]
    slips = demonstrations(prompts, seed=0, wrong=0.5)
    assert arithmetic.format(prompts, slips) == [1.0] * 300
    for prompt, completion, found in zip(prompts, slips, arithmetic.steps(prompts, slips), strict=True):
        first, signed, _ = parse(prompt)
        written = [int(match[1]) for match in re.finditer(r":(\d+)", completion)]
        expected = [first + sum(signed[: i + 1]) for i in range(operations)]
        assert [value for _, value in found] == [float(a == b) for a, b in zip(written, expected, strict=True)]

"""The rewards of GSM8K, on the forms that its solutions and its answers take."""

import json
from fractions import Fraction
from pathlib import Path

import pytest

from grpo_jax.rewards import gsm8k, resolve

SOLUTION = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nIn all 48+24 = <<48+24=72>>72.\n#### 72"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 72", 72),
        ("####72\nand then 3", 72),
        ("#### 1 ... #### 2", 2),
        ("#### $1,234.50 dollars", Fraction(2469, 2)),
        ("#### -5", -5),
        ("the answer is 1,000,000.", 1000000),
        ("12,34", 34),
        ("3 apples and .5", Fraction(1, 2)),
        ("<answer> 7 of 9 </answer> 11", 7),
        ("<answer>1</answer><answer>2</answer>", 2),
        (r"thus \boxed{\$42}", 42),
        (r"\boxed{1} but <answer>2</answer>", 2),
        ("x = 18.", 18),
        ("5-3", 3),
        ("", None),
        ("####", None),
        ("none at all", None),
    ],
)
def test_the_final_number(text, number):
    assert gsm8k._final_number(text) == number


def test_a_hyphen_between_numbers_is_a_sign_only_in_front_of_one():
    """`5-3` ends in 3 or in -3: a minus that follows a digit is no sign."""
    assert gsm8k._final_number("from 5-3") == 3
    assert gsm8k._final_number("it is -3") == -3


def test_right_wrong_and_no_solution():
    completions = ["... 72", "71", "72.00", "so 72 of 73", ""]
    assert gsm8k.answer(["?"] * 5, completions, [SOLUTION] * 5) == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert gsm8k.answer(["?"], ["72"], ["no number here"]) == [None]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("\n<think>a\nb</think>\n\n<answer>b</answer>\n", 1.0),
        ("<think>a</think>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a</think><answer>b</answer> more", 0.0),
        ("<think>a<think>b</think></think><answer>c</answer>", 0.0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0),
        ("<think></think><answer>b</answer>", 0.0),
    ],
)
def test_the_layout_of_r1(text, score):
    assert gsm8k.layout(["?"], [text]) == [score]


def test_both_are_found_by_name():
    assert resolve("gsm8k.answer") is gsm8k.answer
    assert resolve("gsm8k.layout") is gsm8k.layout


def test_every_solution_of_the_real_data_has_its_number():
    """On the files themselves, where they lie beside the checkout; the solutions answer their own questions."""
    folder = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
    if not folder.is_dir():
        pytest.skip("the GSM8K files are not beside this checkout")
    for file in ("train.jsonl", "test.jsonl"):
        rows = [json.loads(line) for line in (folder / file).read_text().splitlines()]
        solutions = [row["answer"] for row in rows]
        assert set(gsm8k.answer([""] * len(rows), solutions, solutions)) == {1.0}
        bare = [solution.rpartition("####")[2].strip().replace(",", "") for solution in solutions]
        assert [gsm8k._final_number(s) for s in solutions] == [Fraction(number) for number in bare]

"""The rewards of GSM8K, on the forms that its solutions and its answers take."""

from fractions import Fraction

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
        ("<answer> 48 + 24 = 72 clips, 3 a day </answer>", 72),
        ("<answer> 7 = x </answer>", 7),
        (r"\boxed{2 + 2 = 4}", 4),
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


@pytest.mark.parametrize("number", ["0", "72", "1,080", "12,345,678", "-4", "0.25", "3.50", "$40", "-1,200.75"])
@pytest.mark.parametrize("ending", ["", "\n", " "])
def test_a_solution_in_the_form_of_the_data_set_answers_its_own_question(number, ending):
    """Its last line is `#### number`, behind a calculation that holds other numbers; a bare number says the same."""
    solution = f"He pays 3*$9 = $<<3*9=27>>27, then 27-2=<<27-2=25>>25.\n#### {number}{ending}"
    bare = Fraction(number.replace(",", "").replace("$", ""))
    assert gsm8k._final_number(solution) == bare
    assert gsm8k.answer(["?"] * 3, [solution, number, f"{bare + 1}"], [solution] * 3) == [1.0, 1.0, 0.0]

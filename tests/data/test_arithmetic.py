"""The arithmetic task: worked solutions by hand, the law of its slips, and its splits."""

import itertools
import re

import pytest

from grpo_jax.data.arithmetic import ALPHABET, demonstrations, make_split, parse, solution


def final(completion):
    return completion.rpartition(":")[2]


@pytest.mark.parametrize(
    ("prompt", "forget", "expected"),
    [
        ("47+85-29=?", [], "7+5=12,4+8=12+1=13:132;12-9=3,13-2=11-1=10:103"),
        ("47+85-29=?", [True, False], "7+5=12,4+8=12+0=12:122;12-9=3,12-2=10-1=9:93"),
        ("47+85-29=?", [False, True], "7+5=12,4+8=12+1=13:132;12-9=3,13-2=11-0=11:113"),
        ("12+34+51=?", [True, True], "2+4=6,1+3=4+0=4:46;6+1=7,4+5=9+0=9:97"),  # nothing to forget
        ("10-10+25=?", [], "0-0=0,1-1=0-0=0:0;0+5=5,0+2=2+0=2:25"),
        ("20-15-11=?", [True, True], "10-5=5,2-1=1-0=1:15;5-1=4,1-1=0-0=0:4"),
        ("99+99+99=?", [], "9+9=18,9+9=18+1=19:198;8+9=17,19+9=28+1=29:297"),
        ("7+5=?", [], "7+5=12:12"),
        ("101-99+10=?", None, None),
        ("500-199=?", [], "10-9=1,10-9=1-1=0,5-1=4-1=3:301"),
        ("500-199=?", [True, False], "10-9=1,10-9=1-0=1,5-1=4-1=3:311"),
        ("195+105=?", [False, True], "5+5=10,9+0=9+1=10,1+1=2+0=2:200"),
    ],
)
def test_worked_solutions(prompt, forget, expected):
    if expected is None:
        with pytest.raises(ValueError, match=r"operands of \[2, 3\] digits"):
            solution(prompt)
    else:
        assert solution(prompt, forget=forget) == expected


@pytest.mark.parametrize(("operations", "digits"), [(2, 2), (3, 2), (2, 3), (2, 1)])
def test_every_column_and_result_of_a_solution_is_true(operations, digits):
    data, _ = make_split(1, train=200, test=0, operations=operations, digits=digits)
    for row in data.rows:
        completion = solution(row["prompt"])
        assert final(completion) == row["answer"] == str(eval(row["prompt"].rstrip("=?")))
        assert set(row["prompt"] + completion) <= set(ALPHABET)
        parts = completion.split(";")
        assert len(parts) == operations
        for part in parts:
            columns = part.partition(":")[0].split(",")
            assert len(columns) == digits
            for column in columns:
                first, *carried = column.split("=")
                value = eval(first)
                for text in carried:  # the sum, and the sum with its carry
                    number, sign, one = re.fullmatch(r"(\d+)([+-]?)(.*)", text).groups()
                    assert int(number) == value >= 0
                    value = eval(f"{value}{sign}{one}") if sign else value


@pytest.mark.parametrize(("operations", "digits"), [(2, 2), (3, 2), (2, 3)])
def test_an_answer_is_right_exactly_when_no_carry_was_forgotten(operations, digits):
    data, _ = make_split(2, train=150, test=0, operations=operations, digits=digits)
    places = operations * (digits - 1)
    for row in data.rows:
        right = solution(row["prompt"])
        for forget in itertools.product([False, True], repeat=places):
            slipped = solution(row["prompt"], forget=forget)  # raises if a value became negative
            assert (final(slipped) == row["answer"]) == (slipped == right)


def test_each_carry_is_forgotten_with_the_given_probability():
    data, _ = make_split(4, train=2000, test=0, operations=2, digits=2)
    one_carry = [
        prompt for prompt in data.prompts(range(2000)) if len(re.findall(r"=\d+[+-]1=", solution(prompt))) == 1
    ]
    right = [solution(prompt) for prompt in one_carry]
    assert len(one_carry) > 800
    for wrong in (0.0, 0.3, 1.0):
        shown = demonstrations(one_carry, seed=(7, 1), wrong=wrong)
        share = sum(a != b for a, b in zip(shown, right, strict=True)) / len(right)
        assert abs(share - wrong) < 4 * (wrong * (1 - wrong) / len(right)) ** 0.5 + 1e-9
    some = demonstrations(one_carry, seed=(7, 1), wrong=0.5)
    assert (
        some == demonstrations(one_carry, seed=(7, 1), wrong=0.5) != demonstrations(one_carry, seed=(7, 2), wrong=0.5)
    )
    assert demonstrations([], seed=0, wrong=0.5) == []


def test_splits_are_disjoint_distinct_and_fixed_by_the_seed():
    train, test = make_split(0, train=300, test=100, operations=2, digits=2)
    prompts = [row["prompt"] for row in train.rows + test.rows]
    assert (len(train), len(test), len(set(prompts))) == (300, 100, 400)
    again = make_split(0, train=300, test=100, operations=2, digits=2)
    assert (train, test) == again
    assert train.fingerprint() != make_split(1, train=300, test=100, operations=2, digits=2)[0].fingerprint()
    assert train.columns([0]).keys() == {"answer"}


def test_a_split_can_take_every_problem_there_is_but_not_one_more():
    operands = range(1, 10)
    everything = {f"{a}{s}{b}=?" for a in operands for b in operands for s in "+-" if s == "+" or a >= b}
    train, test = make_split(0, train=100, test=26, operations=1, digits=1)
    assert {row["prompt"] for row in train.rows + test.rows} == everything
    with pytest.raises(
        ValueError, match=r"ask for 127 problems, but only 126 distinct ones have operations=1 and digits=1"
    ):
        make_split(0, train=100, test=27, operations=1, digits=1)


@pytest.mark.parametrize("name", ["train", "operations", "digits"])
def test_split_arguments_are_checked(name):
    with pytest.raises(ValueError, match=f"{name}=0 is too small"):
        make_split(0, **({"train": 1, "test": 0, "operations": 2, "digits": 2} | {name: 0}))


def test_demonstrations_and_solutions_are_checked():
    with pytest.raises(ValueError, match=r"wrong=1.5 is not a probability"):
        demonstrations(["11+11=?"], seed=0, wrong=1.5)
    with pytest.raises(ValueError, match=r"forget has 2 flags for '11\+11=\?': give 1, or none"):
        solution("11+11=?", forget=[True, False])
    with pytest.raises(ValueError, match=r"'11-12=\?' has a negative running value"):
        solution("11-12=?")
    for text in ("11+12", "11=", "+11+12=", "11*12=", ""):
        with pytest.raises(ValueError, match="is not a problem such as"):
            parse(text)

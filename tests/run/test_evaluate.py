"""pass@k and maj@k against enumeration."""

import itertools
from statistics import mean

import pytest

from grpo_jax.run.evaluation import majority, pass_at_k


@pytest.mark.parametrize("n", [1, 2, 5])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(mean(any(s) for s in subsets))


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_k_samples(k):
    with pytest.raises(ValueError, match=f"k: {k}; expected a number from 1 to the 4 samples"):
        pass_at_k(4, 2, k)


@pytest.mark.parametrize(
    ("answers", "right", "expected"),
    [("aab", [1, 1, 0], 1.0), ("aab", [0, 0, 1], 0.0), ("abc", [1, 0, 0], 1 / 3), ("aabb", [1, 1, 0, 0], 0.5)],
)
def test_the_most_frequent_answer_has_the_vote_and_ties_share_it(answers, right, expected):
    assert majority(list(answers), [bool(r) for r in right]) == pytest.approx(expected)

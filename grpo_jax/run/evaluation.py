"""Held-out accuracy: greedy, sampled, pass@k and maj@k."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from grpo_jax.models.decoder import Params
from grpo_jax.rewards import Rewards
from grpo_jax.rollout.sampler import Sampler
from grpo_jax.run.draw import draw
from grpo_jax.run.group import correct, rewarded
from grpo_jax.run.run import Run

EVALUATION = np.uint32(2**32 - 1)
"""The step that evaluation's keys derive from: no completion of training shares one of them."""


def evaluate(run: Run, rewards: Rewards, published: Params) -> dict[str, float]:
    """Returns `greedy` and `sampled` accuracy, `pass@k` for powers of two, and `maj@n`, on the held-out problems.

    The noise is the same in every evaluation of a run, so that two of them differ by the policy alone.
    """
    greedy, _ = _answers(run, rewards, published, group=run.group_devices, sampler=Sampler(temperature=0))
    right, votes = _answers(run, rewards, published, group=run.settings.eval.samples, sampler=eval_sampler(run))
    n = right.shape[1]
    scores = {"greedy": float(greedy[:, 0].mean()), "sampled": float(right.mean())}
    for k in (2**i for i in range(1, n.bit_length())):
        scores[f"pass@{k}"] = float(np.mean([pass_at_k(n, int(row.sum()), k) for row in right]))
    if n > 1:
        scores[f"maj@{n}"] = float(np.mean([majority(*row) for row in zip(votes, right, strict=True)]))
    return scores


def eval_sampler(run: Run) -> Sampler:
    """Returns how held-out problems are sampled: at the temperature of training, with the filters of evaluation."""
    filters = run.settings.eval
    return Sampler(
        temperature=run.learner.model.temperature, top_k=filters.top_k, top_p=filters.top_p, min_p=filters.min_p
    )


def pass_at_k(n: int, c: int, k: int) -> float:
    """Returns the unbiased estimate of the chance that at least one of k samples is right.

        pass@k = 1 - C(n - c, k) / C(n, k)

    Args:
      n: samples drawn.
      c: samples that were right.
      k: at most n.

    Raises:
      ValueError: k is not in 1..n.

    Reference: Evaluating Large Language Models Trained on Code, arXiv:2107.03374, equation 1.

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 4)
    (0.25, 1.0)
    """
    if not 1 <= k <= n:
        raise ValueError(f"k: {k}; expected a number from 1 to the {n} samples drawn")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority(answers: Sequence[str], right: Sequence[bool]) -> float:
    """Returns the chance that the most frequent answer is right; answers that tie share the vote.

    >>> majority(["7", "7", "8"], [True, True, False]), majority(["7", "8"], [True, False])
    (1.0, 0.5)
    """
    counts = Counter(answers)
    most = max(counts.values())
    winners = [answer for answer, count in counts.items() if count == most]
    verdict = dict(zip(answers, right, strict=True))
    return sum(bool(verdict[answer]) for answer in winners) / len(winners)


def _answers(
    run: Run, rewards: Rewards, published: Params, *, group: int, sampler: Sampler
) -> tuple[np.ndarray, list[list[str]]]:
    """Returns, per held-out problem, whether each of its completions is right, and what it answers."""
    size, prompts = len(run.test_data), run.settings.train.prompts
    after = run.settings.eval.answer_after
    right, votes = [], []
    for start in range(0, size, prompts):
        # The last batch is filled up with the first problems, so that one program serves all batches.
        rows = [i % size for i in range(start, start + prompts)]
        drawn = draw(run, published, run.test_data, rows, step=EVALUATION, group=group, sampler=sampler)
        groups = rewarded(rewards, drawn)
        right.append(correct(groups))
        votes += [[text.rsplit(after, 1)[-1] if after else text for text in each.completions] for each in groups]
    return np.concatenate(right)[:size], votes[:size]

"""The rewards of a run, and the processes that compute them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_jax.rewards.pool import Pool
from grpo_jax.rewards.scores import Reward, Scores
from grpo_jax.rewards.scoring import Scoring


class Rewards:
    """The rewards of a run. A context manager, which owns the workers.

    With `workers=0` rewards run in this process, each called once with everything, and no deadline holds.
    Otherwise the completions are cut into chunks and every call has the deadline. In both cases a call that raises
    (or hangs, or kills its worker) is repeated for each of its completions alone, so that only the offenders are
    masked and counted.

    >>> def length(prompts, completions, **_):
    ...     return [len(completion) for completion in completions]
    >>> def inverse(prompts, completions, divisor, **_):
    ...     return [1 / d for d in divisor]
    >>> with Rewards([Reward(length), Reward(inverse, weight=2.0)]) as rewards:
    ...     scores = rewards.score(["p", "p"], ["a", "bb"], {"divisor": [4, 0]})
    >>> scores.total.tolist(), scores.valid.tolist(), scores.failures
    ([1.5, 2.0], [True, True], {'length': 0, 'inverse': 1})

    Args:
      rewards: at least one, with different names.
      workers: the number of processes; 0 for none.
      deadline: seconds that a call in a worker may take.
      chunk: completions per call in a worker.

    Raises:
      ValueError: an argument is out of range, or a reward cannot be sent to a worker.
      RuntimeError: the workers cannot start.
    """

    def __init__(self, rewards: Sequence[Reward], *, workers: int = 0, deadline: float = 10.0, chunk: int = 16) -> None:
        names = [reward.name for reward in rewards]
        if not names:
            raise ValueError("rewards is empty: give at least one Reward")
        if len(set(names)) < len(names):
            raise ValueError(f"two rewards have one name in {names}: give each Reward its own name=")
        if workers < 0:
            raise ValueError(f"workers={workers} is negative: give 0 (this process) or more")
        if not deadline > 0:
            raise ValueError(f"deadline={deadline} is not positive: give seconds")
        if chunk < 1:
            raise ValueError(f"chunk={chunk} is too small: give at least 1")
        self._rewards, self._chunk = {reward.name: reward for reward in rewards}, chunk
        functions = [reward.function for reward in rewards]
        self._pool = Pool(functions, workers=workers, deadline=deadline) if workers else None

    def __enter__(self) -> Rewards:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.close()

    def check_columns(self, columns: Sequence[str]) -> None:
        """Returns nothing if every reward can be called with these dataset columns.

        Raises:
          ValueError: a reward needs a column that is not there, or does not accept one that is.
        """
        for reward in self._rewards.values():
            reward.check_columns(columns)

    def score(self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Scores:
        """Returns the scores of N completions.

        Args:
          prompts: N texts, each prompt repeated once per completion.
          completions: N texts.
          columns: the other dataset columns, repeated like the prompts.

        Raises:
          ValueError: lengths differ, columns do not fit, or a reward returns the wrong number or type of values.
          RuntimeError: workers keep dying before they take a call, or were ended.
        """
        with self.begin() as scoring:
            scoring.add(prompts, completions, columns)
            return scoring.result()

    def begin(self) -> Scoring:
        """Returns a place to hand completions to as they end. Several may be in use at once."""
        return Scoring(self._rewards, pool=self._pool, chunk=self._chunk)

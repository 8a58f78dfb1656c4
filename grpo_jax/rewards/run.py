"""Many rewards on all completions of a step: scores, and an account of what could not be scored."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from grpo_jax.rewards.attempt import Outcome, Steps, Value, attempt
from grpo_jax.rewards.pool import Pool


@dataclasses.dataclass(frozen=True)
class Reward:
    """A reward function with its weight and the name that metrics show.

    The function is `f(prompts, completions, **dataset_columns)`, sync or async, and returns one value per completion:
    a number, `None` or NaN where it does not apply, or, for a process reward, a list of (end position, value).

    Raises:
      ValueError: the weight is not finite, or a function without a name gets none.
    """

    function: Callable[..., Any]
    _: dataclasses.KW_ONLY
    weight: float = 1.0
    name: str = ""
    """Empty: the function's own name."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"weight={self.weight} of reward {self.function!r}: give a finite number")
        if not self.name:
            if not inspect.isroutine(self.function):
                raise ValueError(f"name is empty and {self.function!r} has no name of its own: give one")
            object.__setattr__(self, "name", self.function.__name__)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What the rewards say about N completions."""

    total: np.ndarray
    """float32 [N]: the sum of weight times value over the outcome rewards that apply; 0 where none does."""
    valid: np.ndarray
    """bool [N]: at least one reward applies, outcome or process. The others are masked, not scored 0."""
    each: dict[str, np.ndarray]
    """Per reward, float32 [N] without its weight: the value, or the mean over a process reward's steps; NaN: none."""
    failed: dict[str, np.ndarray]
    """Per reward, bool [N]: it could not score the completion because it raised, hung or died."""
    errors: dict[str, str]
    """Per reward that failed, its first traceback or what replaced it."""
    steps: list[Steps | None]
    """Per completion, the process rewards' (end position, weight times value) by position; None: none applies."""

    @property
    def failures(self) -> dict[str, int]:
        """Per reward, how many completions it could not score."""
        return {name: int(failed.sum()) for name, failed in self.failed.items()}

    def groups(self, size: int) -> list[Scores]:
        """Returns the scores cut into groups of `size` completions; each keeps the errors of its own failures."""
        return [self._part(slice(i, i + size)) for i in range(0, len(self.total), size)]

    def _part(self, part: slice) -> Scores:
        failed = {name: each[part] for name, each in self.failed.items()}
        return Scores(
            total=self.total[part],
            valid=self.valid[part],
            each={name: values[part] for name, values in self.each.items()},
            failed=failed,
            errors={n: text for n, text in self.errors.items() if failed[n].any() or not self.failed[n].any()},
            steps=self.steps[part],
        )


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
        for name, reward in self._rewards.items():
            try:
                inspect.signature(reward.function).bind([], [], **dict.fromkeys(columns, ()))
            except TypeError as error:
                raise ValueError(
                    f"reward {name!r} cannot be called with the dataset's columns {sorted(columns)}: {error}; "
                    "add the column to the dataset, or `**_` to the function"
                ) from None

    def score(self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Scores:
        """Returns the scores of N completions.

        Args:
          prompts: N texts, each prompt repeated once per completion.
          completions: N texts.
          columns: the other dataset columns, repeated like the prompts.

        Raises:
          ValueError: lengths differ, columns do not fit, or a reward returns the wrong number or type of values.
        """
        for name, column in {"prompts": prompts, **columns}.items():
            if len(column) != len(completions):
                raise ValueError(
                    f"{name} has {len(column)} entries for {len(completions)} completions: "
                    "repeat it once per completion of a prompt"
                )
        self.check_columns(list(columns))
        values: dict[str, list[Value]] = {name: [None] * len(completions) for name in self._rewards}
        failed, errors = {name: np.zeros(len(completions), bool) for name in self._rewards}, {}
        size = self._chunk if self._pool else max(len(completions), 1)
        spans = [range(i, min(i + size, len(completions))) for i in range(0, len(completions), size)]
        jobs = [(name, span) for name in self._rewards for span in spans]
        while jobs:
            outcomes, tried, jobs = self._run(jobs, prompts, completions, columns), jobs, []
            for (name, span), outcome in zip(tried, outcomes, strict=True):
                if outcome.invalid is not None:
                    raise ValueError(f"reward {name!r} {outcome.invalid}")
                if outcome.values is not None:
                    values[name][span.start : span.stop] = outcome.values
                    continue
                errors.setdefault(name, outcome.raised)
                if len(span) > 1:
                    jobs += [(name, range(i, i + 1)) for i in span]
                else:
                    failed[name][span.start] = True
        return self._scores(values, failed, errors, len(completions))

    def _run(
        self,
        jobs: Sequence[tuple[str, range]],
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[Outcome]:
        calls = [
            (
                self._rewards[name].function,
                prompts[span.start : span.stop],
                completions[span.start : span.stop],
                {key: column[span.start : span.stop] for key, column in columns.items()},
            )
            for name, span in jobs
        ]
        return self._pool.run(calls) if self._pool else [attempt(*call) for call in calls]

    def _scores(
        self, values: Mapping[str, Sequence[Value]], failed: dict[str, np.ndarray], errors: dict[str, str], count: int
    ) -> Scores:
        total, valid = np.zeros(count), np.zeros(count, bool)
        steps: list[Steps | None] = [None] * count
        each = {}
        for name, column in values.items():
            if len({isinstance(value, list) for value in column if value is not None}) > 1:
                raise ValueError(f"reward {name!r} returned both numbers and lists of steps: return one kind")
            weight = self._rewards[name].weight
            numbers = np.full(count, np.nan)
            for i, value in enumerate(column):
                if isinstance(value, list):
                    steps[i] = (steps[i] or []) + [(end, weight * number) for end, number in value]
                    numbers[i] = np.mean([number for _, number in value])
                elif value is not None:
                    total[i] += weight * value
                    numbers[i] = value
            each[name] = numbers.astype(np.float32)
            valid |= ~np.isnan(numbers)
        by_position = [None if found is None else sorted(found, key=lambda step: step[0]) for found in steps]
        return Scores(total.astype(np.float32), valid, each, failed, errors, by_position)

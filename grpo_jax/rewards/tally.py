"""The outcomes of many calls, gathered into scores and an account of what could not be scored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from grpo_jax.rewards.attempt import Outcome, Steps, Value
from grpo_jax.rewards.scores import Reward, Scores


class Tally:
    """Outcomes of calls. They may come in any order: only a failed call goes before its repetitions.

    >>> tally = Tally({"it": Reward(len, name="it")})
    >>> tally.add("it", range(1, 3), Outcome(raised="why"))
    [range(1, 2), range(2, 3)]
    >>> _ = tally.add("it", range(2, 3), Outcome(raised="why else")), tally.add("it", range(1), Outcome(values=[1.0]))
    >>> _ = tally.add("it", range(1, 2), Outcome(values=[0.5]))
    >>> scores = tally.scores(3)
    >>> scores.total.tolist(), scores.valid.tolist(), scores.errors
    ([1.0, 0.5, 0.0], [True, True, False], {'it': 'why'})

    Args:
      rewards: the rewards by name.
    """

    def __init__(self, rewards: Mapping[str, Reward]) -> None:
        self._rewards = rewards
        self._values: dict[str, dict[int, Value]] = {name: {} for name in rewards}
        self._failed: dict[str, list[int]] = {name: [] for name in rewards}
        self._raised: dict[str, dict[int, str]] = {name: {} for name in rewards}
        self._invalid: dict[str, dict[int, str]] = {name: {} for name in rewards}

    def add(self, name: str, span: range, outcome: Outcome) -> list[range]:
        """Returns the spans to call again: of a failed call each completion alone, so that only offenders are masked.

        Args:
          name: the reward that was called.
          span: positions of the completions that it was called with.
          outcome: how the call ended.
        """
        if outcome.invalid is not None:
            self._invalid[name][span.start] = outcome.invalid
        elif outcome.values is not None:
            self._values[name].update(zip(span, outcome.values, strict=True))
        else:
            self._raised[name].setdefault(span.start, outcome.raised)  # the call's own, not that of its repetition
            if len(span) > 1:
                return [range(i, i + 1) for i in span]
            self._failed[name].append(span.start)
        return []

    def scores(self, count: int) -> Scores:
        """Returns the scores of completions 0 to `count` - 1.

        Raises:
          ValueError: a reward returned the wrong number or type of values. Of several faults, that of the first
            reward on the first completions is told.
        """
        for name, faults in self._invalid.items():
            if faults:
                raise ValueError(f"reward {name!r} {faults[min(faults)]}")
        total, valid = np.zeros(count), np.zeros(count, bool)
        steps: list[Steps | None] = [None] * count
        each, failed = {}, {}
        for name, values in self._values.items():
            if len({isinstance(value, list) for value in values.values() if value is not None}) > 1:
                raise ValueError(f"reward {name!r} returned both numbers and lists of steps: return one kind")
            weight = self._rewards[name].weight
            numbers = np.full(count, np.nan)
            for i, value in values.items():
                if isinstance(value, list):
                    steps[i] = (steps[i] or []) + [(end, weight * number) for end, number in value]
                    numbers[i] = np.mean([number for _, number in value])
                elif value is not None:
                    total[i] += weight * value
                    numbers[i] = value
            each[name] = numbers.astype(np.float32)
            valid |= ~np.isnan(numbers)
            failed[name] = np.zeros(count, bool)
            failed[name][self._failed[name]] = True
        errors = {name: raised[min(raised)] for name, raised in self._raised.items() if raised}
        by_position = [None if found is None else sorted(found, key=lambda step: step[0]) for found in steps]
        return Scores(total.astype(np.float32), valid, each, failed, errors, by_position)

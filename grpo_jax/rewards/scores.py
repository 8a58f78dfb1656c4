"""A reward with its weight, and what rewards say of completions."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grpo_jax.rewards.attempt import Steps


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

    def check_columns(self, columns: Sequence[str]) -> None:
        """Returns nothing if the function can be called with these dataset columns.

        Raises:
          ValueError: it needs a column that is not there, or does not accept one that is.
        """
        try:
            inspect.signature(self.function).bind([], [], **dict.fromkeys(columns, ()))
        except TypeError as error:
            raise ValueError(
                f"reward {self.name!r} cannot be called with the dataset's columns {sorted(columns)}: {error}; "
                "add the column to the dataset, or `**_` to the function"
            ) from None


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
        count = len(self.total)
        return [self.take(range(i, min(i + size, count))) for i in range(0, count, size)]

    def take(self, order: Sequence[int]) -> Scores:
        """Returns the scores of these completions, in this order, with the errors of their own failures.

        Args:
          order: positions; some may be left out.

        Raises:
          IndexError: there is no such position.
        """
        index = np.asarray(order, int)
        failed = {name: each[index] for name, each in self.failed.items()}
        return Scores(
            total=self.total[index],
            valid=self.valid[index],
            each={name: values[index] for name, values in self.each.items()},
            failed=failed,
            errors={n: text for n, text in self.errors.items() if failed[n].any() or not self.failed[n].any()},
            steps=[self.steps[i] for i in order],
        )

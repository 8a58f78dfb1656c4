"""Completions that are handed to the rewards as they end, while others are still being drawn."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_jax.rewards.attempt import attempt
from grpo_jax.rewards.pool import Call, Ended, Job, Pool
from grpo_jax.rewards.scores import Reward, Scores
from grpo_jax.rewards.tally import Tally


class Scoring:
    """The completions of one rollout and their way through the rewards. `Rewards.begin` makes one.

    With workers, what is added is cut into chunks and called at once. Without, it is remembered, and `result` calls
    each reward once with everything. Scores depend neither on when workers answer nor in which order.
    A context manager; its end gives up what still runs. For one thread.

    >>> from grpo_jax.rewards import Rewards
    >>> def length(prompts, completions, **_):
    ...     return [len(completion) for completion in completions]
    >>> with Rewards([Reward(length)]) as rewards, rewards.begin() as scoring:
    ...     scoring.add(["p"], ["a"], {})
    ...     scoring.add(["p", "q"], ["bb", "ccc"], {})
    ...     scores = scoring.result()
    >>> scores.total.tolist()
    [1.0, 2.0, 3.0]

    Args:
      rewards: the rewards by name.
      pool: the workers; None for none.
      chunk: completions per call in a worker.
    """

    def __init__(self, rewards: Mapping[str, Reward], *, pool: Pool | None, chunk: int) -> None:
        self.waited = 0.0
        """Seconds that `result` took for rewards: for workers that had not answered, or for calls in this process."""
        self._rewards, self._pool, self._chunk = rewards, pool, chunk
        self._prompts: list[str] = []
        self._completions: list[str] = []
        self._columns: dict[str, list[Any]] | None = None
        self._tally = Tally(rewards)
        self._jobs: dict[Job, tuple[str, range]] = {}
        self._ended: Ended = queue.SimpleQueue()
        self._finished = self._closed = False

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Returns nothing: cancels the calls that have not ended. A second time it does nothing."""
        if self._pool:
            self._pool.cancel(self._jobs)
        self._jobs.clear()
        self._closed = True

    def add(self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> None:
        """Returns nothing: takes N more completions and, with workers, has them scored without waiting.

        Args:
          prompts: N texts, each prompt repeated once per completion.
          completions: N texts.
          columns: the other dataset columns, repeated like the prompts; the same ones every time.

        Raises:
          ValueError: lengths differ, or columns do not fit.
          RuntimeError: the result was taken, this was closed, or workers keep dying before they take a call.
        """
        if self._finished or self._closed:
            raise RuntimeError("completions came after result() or close(): begin another scoring")
        self._check(prompts, completions, columns)
        first = len(self._completions)
        self._prompts.extend(prompts)
        self._completions.extend(completions)
        self._columns = self._columns or {name: [] for name in columns}
        for name, column in columns.items():
            self._columns[name].extend(column)
        if self._pool:
            self._catch_up(self._pool)
            count = len(self._completions)
            spans = [range(i, min(i + self._chunk, count)) for i in range(first, count, self._chunk)]
            for name in self._rewards:
                self._schedule(self._pool, name, spans)

    @property
    def ready(self) -> bool:
        """Whether `result` would not wait for a worker. To look is to repeat what failed, without waiting for it."""
        if self._pool and self._jobs:
            self._catch_up(self._pool)
        return not self._jobs

    def result(self) -> Scores:
        """Returns the scores of all completions, in the order in which they were added.

        Raises:
          ValueError: a reward returns the wrong number or type of values.
          RuntimeError: this was closed before, or workers keep dying before they take a call.
        """
        if not self._finished:
            if self._closed:
                raise RuntimeError("result() came after close(): its calls were cancelled")
            started = time.monotonic()
            if self._pool:
                while self._jobs:
                    self._note(self._pool, *self._pool.next(self._ended))
            else:
                self._call_here()
            self._finished, self.waited = True, time.monotonic() - started
        return self._tally.scores(len(self._completions))

    def _check(self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> None:
        for name, column in {"prompts": prompts, **columns}.items():
            if len(column) != len(completions):
                raise ValueError(
                    f"{name} has {len(column)} entries for {len(completions)} completions: "
                    "repeat it once per completion of a prompt"
                )
        for reward in self._rewards.values():
            reward.check_columns(list(columns))
        if self._columns is not None and set(columns) != set(self._columns):
            raise ValueError(
                f"columns {sorted(columns)} came after {sorted(self._columns)}: hand in the same ones every time"
            )

    def _call(self, name: str, span: range) -> Call:
        part = slice(span.start, span.stop)
        columns = {key: column[part] for key, column in (self._columns or {}).items()}
        return self._rewards[name].function, self._prompts[part], self._completions[part], columns

    def _call_here(self) -> None:
        everything = range(len(self._completions))
        spans = [(name, everything) for name in self._rewards if everything]
        for name, span in spans:  # grows while it is walked
            spans += [(name, alone) for alone in self._tally.add(name, span, attempt(*self._call(name, span)))]

    def _schedule(self, pool: Pool, name: str, spans: Sequence[range]) -> None:
        for span in spans:
            self._jobs[pool.schedule(self._call(name, span), self._ended)] = name, span

    def _catch_up(self, pool: Pool) -> None:
        pool.revive()
        with contextlib.suppress(queue.Empty):
            while True:
                self._note(pool, *self._ended.get_nowait())

    def _note(self, pool: Pool, job: Job, future: Any) -> None:
        outcome = pool.outcome(job, future)
        if outcome is not None:
            name, span = self._jobs.pop(job)
            self._schedule(pool, name, self._tally.add(name, span, outcome))

"""Reward calls in worker processes with a deadline, in which nothing that a call does can reach the caller."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pebble

from grpo_jax.rewards.attempt import Outcome, attempt, prepare

Call = tuple[Callable[..., Any], Sequence[str], Sequence[str], Mapping[str, Sequence[Any]]]
"""The arguments of `attempt`."""

_ATTEMPTS = 3


class Pool:
    """Worker processes that are replaced whenever a call hangs or kills one. A context manager.

    Workers are spawned, not forked: JAX has threads, and a fork of a process with threads can deadlock.

    Args:
      functions: every function that will be called; workers import their modules before the first call.
      workers: the number of processes.
      deadline: seconds per call, after which its worker is killed.

    Raises:
      ValueError: a function cannot be sent to another process.
      RuntimeError: workers die before they take a call.
    """

    def __init__(self, functions: Sequence[Callable[..., Any]], *, workers: int, deadline: float) -> None:
        for function in functions:
            try:
                pickle.dumps(function)
            except Exception as error:
                raise ValueError(
                    f"the reward {function!r} cannot be sent to a worker ({error}): "
                    "define it at the top level of a module, or set workers=0"
                ) from None
        self._functions, self._workers, self._deadline = tuple(functions), workers, deadline
        self._pool = self._start()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, busy or not."""
        self._pool.stop()
        self._pool.join()

    def run(self, calls: Sequence[Call]) -> list[Outcome]:
        """Returns the outcome of every call, in order.

        Raises:
          RuntimeError: workers keep dying before they take a call.
        """
        outcomes: dict[int, Outcome] = {}
        for _ in range(_ATTEMPTS):
            left = [i for i in range(len(calls)) if i not in outcomes]
            try:
                # All are scheduled before the first is awaited.
                futures = [self._pool.schedule(attempt, args=calls[i], timeout=self._deadline) for i in left]
                for i, future in zip(left, futures, strict=True):
                    outcomes[i] = self._outcome(future, len(calls[i][2]))
                return [outcomes[i] for i in range(len(calls))]
            except RuntimeError:  # a worker died between two calls, which breaks the pool: no call is to blame
                self.close()
                self._pool = self._start()
        raise RuntimeError(f"the reward workers died {_ATTEMPTS} times between calls: their messages are on stderr")

    def _outcome(self, future: pebble.ProcessFuture, count: int) -> Outcome:
        while not future.done():
            concurrent.futures.wait([future], timeout=1.0)
            if not future.done() and not self._pool.active:
                raise BrokenProcessPool("calls that a broken pool had not handed out yet never end")
        try:
            return future.result()
        except TimeoutError:
            return Outcome(raised=f"no result within the deadline of {self._deadline} s for {count} completion(s)\n")
        except pebble.ProcessExpired as error:
            return Outcome(raised=f"the worker died with exit code {error.exitcode} on {count} completion(s)\n")

    def _start(self) -> pebble.ProcessPool:
        pool = pebble.ProcessPool(
            max_workers=self._workers,
            initializer=prepare,
            initargs=(self._functions,),
            context=multiprocessing.get_context("spawn"),
        )
        try:
            pool.schedule(int).result()  # any call: it shows that workers can start
        except BrokenProcessPool:
            pool.stop()
            pool.join()
            raise RuntimeError(
                "the reward workers cannot start (their messages are on stderr): the rewards' modules must be "
                "importable, and a script that starts workers needs `if __name__ == '__main__':`"
            ) from None
        return pool

"""Reward calls in worker processes with a deadline, in which nothing that a call does can reach the caller."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import pickle
import queue
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pebble

from grpo_jax.rewards.attempt import Outcome, attempt, prepare

Call = tuple[Callable[..., Any], Sequence[str], Sequence[str], Mapping[str, Sequence[Any]]]
"""The arguments of `attempt`."""

_ATTEMPTS = 3


@dataclasses.dataclass(eq=False)
class Job:
    """A call on its way, from `Pool.schedule` until its outcome is known."""

    call: Call
    ended: Ended
    """Where it is told that the call ended."""
    future: pebble.ProcessFuture | None = None
    """Another one each time that the call is handed out."""
    spared: bool = False
    """It has missed the deadline once, perhaps without being to blame."""


Ended = queue.SimpleQueue[tuple[Job, pebble.ProcessFuture]]
"""Calls that ended, in no special order."""


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
        # Weak: calls that nobody can ask about any more need no outcome. In the order of their scheduling.
        self._open: weakref.WeakKeyDictionary[Job, None] = weakref.WeakKeyDictionary()
        self._breaks = 0
        self._cancelled = self._closed = False

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, busy or not."""
        if not self._closed:
            self._closed = True
            self._stop()

    def schedule(self, call: Call, ended: Ended) -> Job:
        """Returns the call's job, without waiting: `ended` will get it, with the future that `outcome` reads.

        Raises:
          RuntimeError: workers keep dying before they take a call, or were ended.
        """
        job = Job(call, ended)
        self._open[job] = None
        try:
            self._hand_out(job)
        except RuntimeError:  # the pool is broken
            self._restart()
        return job

    def next(self, ended: Ended) -> tuple[Job, pebble.ProcessFuture]:
        """Returns what `ended` gets next, and waits for it.

        Raises:
          RuntimeError: workers keep dying before they take a call, or were ended.
        """
        while True:
            try:
                return ended.get(timeout=1.0)
            except queue.Empty:
                self.revive()

    def revive(self) -> None:
        """Returns nothing: starts broken workers anew. Calls that a broken pool had not handed out would never end.

        Raises:
          RuntimeError: workers keep dying before they take a call, or were ended.
        """
        if not self._pool.active:
            self._restart()

    def outcome(self, job: Job, future: pebble.ProcessFuture) -> Outcome | None:
        """Returns how an ended call ended; None if it has been handed out again, and will end once more.

        Raises:
          RuntimeError: workers keep dying before they take a call, or were ended.
        """
        if future is not job.future:
            return None
        count = len(job.call[2])
        try:
            outcome = future.result()
        except BrokenProcessPool:
            self._restart()
            return None
        except TimeoutError:
            # To cancel a call, its worker is killed; it may just have finished that call and begun this one.
            if self._cancelled and not job.spared:
                job.spared, job.future = True, None
                with contextlib.suppress(RuntimeError):  # `revive` hands it out
                    self._hand_out(job)
                return None
            outcome = Outcome(raised=f"no result within the deadline of {self._deadline} s for {count} completion(s)\n")
        except pebble.ProcessExpired as error:
            outcome = Outcome(raised=f"the worker died with exit code {error.exitcode} on {count} completion(s)\n")
        except (AttributeError, TypeError, pickle.PicklingError) as error:  # raised on the way there
            outcome = Outcome(invalid=f"cannot be sent its columns in a worker ({error}): set workers=0")
        del self._open[job]
        self._breaks = 0
        return outcome

    def cancel(self, jobs: Iterable[Job]) -> None:
        """Returns nothing: gives up calls. The workers that run them are replaced."""
        for job in jobs:
            del self._open[job]
            self._cancelled |= job.future is not None and job.future.cancel()

    def _hand_out(self, job: Job) -> None:
        job.future = self._pool.schedule(attempt, args=job.call, timeout=self._deadline)
        job.future.add_done_callback(functools.partial(_announce, weakref.ref(job)))

    def _restart(self) -> None:
        """Starts new workers after one died between two calls, which breaks the pool: no call is to blame."""
        if self._closed:
            raise RuntimeError("the reward workers were ended: score before the rewards are closed")
        self._stop()
        self._breaks += 1
        if self._breaks >= _ATTEMPTS:
            raise RuntimeError(f"the reward workers died {_ATTEMPTS} times between calls: their messages are on stderr")
        self._pool, self._cancelled = self._start(), False
        with contextlib.suppress(RuntimeError):  # broken again, which `revive` will find
            for job in self._open:
                if _lost(job.future):
                    self._hand_out(job)

    def _stop(self) -> None:
        self._pool.stop()
        self._pool.join()

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


def _announce(reference: weakref.ref[Job], future: pebble.ProcessFuture) -> None:
    """Returns nothing: tells that a call ended. Pebble keeps a future, and this with it, for longer than its call."""
    job = reference()
    if job is not None:
        job.ended.put((job, future))


def _lost(future: pebble.ProcessFuture | None) -> bool:
    """Returns whether a future of a pool that is gone has told nothing of its call, and never will."""
    return future is None or not future.done() or isinstance(future.exception(), BrokenProcessPool)

"""Drawing in stages: rows that have ended leave the loop, and the caches of the others grow as they are needed.

A stage is one compiled program: so many rows, with room for so many tokens. It ends when half of the rows have ended,
or when the room is used up; the live rows are then gathered into a batch of half the size with twice the room. With
fewer rows than completions (`rows`), prompts that wait take the places of rows that have ended.

A completion's key and the weights alone decide its tokens. A product over other rows may round otherwise, which can
turn a draw that is close to a tie; stages are a function of the tokens, so that the same run draws the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Array, Key

from grpo_jax.mesh.compile import jit
from grpo_jax.mesh.mesh import devices_along, fetch
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Params
from grpo_jax.rollout.decoding import Decoding, advance, begin, blocked, by_row, lengthen, refill, regroup
from grpo_jax.rollout.sampler import Sampler
from grpo_jax.types import PromptBatch, Rollout

FEWEST = 8
"""Rows below which a smaller batch is no faster."""

SHORTEST = 128
"""Tokens that the first stage has room for at least: to read more than was written of so few costs little."""

LEAST = 64
"""Tokens that must be left to draw at least for a smaller batch to pay."""

WAVES = 16
"""Prompts that wait begin when so small a share of the rows is free."""

_begin = jit(begin, static_argnums=0, static_argnames="capacity")
_advance = jit(
    advance,
    static_argnums=0,
    static_argnames=("max_tokens", "eos_ids", "sampler", "check_every", "blocks"),
    donate_argnums=2,
)
_regroup = jit(regroup, static_argnums=0, static_argnames=("capacity", "blocks"))
_refill = jit(refill, static_argnums=0, static_argnames="fresh_blocks", donate_argnums=1)
_lengthen = jit(lengthen, static_argnums=0, static_argnames="capacity")
PROGRAMS = (_begin, _advance, _regroup, _refill, _lengthen)
"""What is compiled, once for every shape."""


class Stages:
    """The completions of some prompts. Iterate over it to draw them; each item is what has ended since the last.

    The first stage is on its way when the object is made, and the next one before an item is handed out: what is done
    with completions that have ended overlaps with the drawing of the others. Call it with the mesh in force.

    Args:
      published: weights in the rollout layout (`publish`).
      prompt: NumPy arrays `[P, S]`.
      keys: `[P, G]`, one per completion (`sample_keys`).
      max_tokens: tokens drawn at most, T.
      eos_ids: tokens that end a completion.
      sampler: how a token is drawn; None as `sample` does.
      check_every: tokens between two tests for the end of a stage.
      rows: completions that are drawn at once, in whole groups; None takes all.

    Attributes:
      rollout: NumPy arrays `[P, G, T]`, filled as completions end.
    """

    def __init__(
        self,
        config: DecoderConfig,
        published: Params,
        prompt: PromptBatch,
        keys: Key[Array, "P G"],
        *,
        max_tokens: int,
        eos_ids: tuple[int, ...],
        sampler: Sampler | None = None,
        check_every: int = 8,
        rows: int | None = None,
    ) -> None:
        P, G = keys.shape
        self._published, self._prompt, self._keys = published, prompt, keys
        self._how = {"max_tokens": max_tokens, "eos_ids": eos_ids, "check_every": check_every}
        self._how["sampler"] = sampler or Sampler(temperature=config.temperature)
        # Prompts are begun with this configuration on these blocks of devices; rows may have others later.
        self._first = config, _blocks(config)
        self._config, self._cut = self._first
        self._devices, self._by_row = math.prod(self._cut), False
        at_once = P if rows is None else min(P, rows // G)
        self._wave = max(at_once // WAVES // self._cut[0], 1) * self._cut[0]
        self._waiting = list(range(at_once, P))
        self._sizes = _halves(at_once * G // self._devices, max(FEWEST // self._devices, 1))
        self._rooms = _rooms(max_tokens, check_every)
        self._decoded = 0
        self.rollout = Rollout(
            tokens=np.zeros((P, G, max_tokens), np.int32),
            mask=np.zeros((P, G, max_tokens), bool),
            logp=np.zeros((P, G, max_tokens), np.float32),
            ended=np.zeros((P, G), bool),
        )
        # The completion, prompt * G + sample, that each row draws; -1 where it has ended.
        self._owner = np.arange(at_once * G).reshape(at_once, G)
        self._run(self._begin(range(at_once), self._rooms[0]), cursor=0)

    @property
    def occupancy(self) -> float:
        """The share of live tokens in all that were computed."""
        return float(self.rollout.mask.sum() / max(self._decoded, 1))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yields lists of (prompt, sample): completions that have ended and are in `rollout` now."""
        while (self._owner >= 0).any() or self._waiting:
            done, length, cursor = fetch((self._state.done, self._state.length, self._state.cursor))
            self._decoded += self._owner.size * int(cursor - self._cursor)
            ended = self._write_down(done, length)
            if (self._owner >= 0).any() or self._waiting:
                self._next(int(cursor))
            if ended:
                yield ended

    def finish(self) -> Rollout:
        """Returns all completions, drawn to their ends."""
        for _ in self:
            pass
        return self.rollout

    def _begin(self, prompts: Sequence[int], capacity: int) -> Decoding:
        config, _ = self._first
        index = np.asarray(prompts)
        prompt = jax.tree.map(lambda x: x[index], self._prompt)
        return _begin(config, self._published, prompt, self._keys[index], capacity=capacity)

    def _run(self, state: Decoding, cursor: int) -> None:
        """Starts a stage on its way."""
        self._cursor = cursor
        rows = self._owner.size // self._devices
        if self._waiting:
            when = rows - self._new_rows(), self._rooms[-1]
        else:
            when = next((n for n in self._sizes if n < rows), 0), self._how["max_tokens"] - LEAST
        self._state = _advance(self._config, self._published, state, *when, blocks=self._cut, **self._how)

    def _starts(self) -> np.ndarray:
        """Returns the cursor at which each row began."""
        return np.zeros_like(self._owner) if self._state.start is None else fetch(self._state.start)

    def _new_rows(self) -> int:
        """Returns how many rows of a device the next prompts take."""
        group = self._keys.shape[1]
        return min(self._wave, len(self._waiting)) * group // self._devices

    def _write_down(self, done: np.ndarray, length: np.ndarray) -> list[tuple[int, int]]:
        """Returns the completions that have ended since the last stage, after writing them to `rollout`."""
        places = list(map(tuple, np.argwhere(done & (self._owner >= 0))))
        if not places:
            return []
        (tokens, logp), start = fetch((self._state.tokens, self._state.logp)), self._starts()
        ended, out = [], self.rollout
        for place in places:
            at = divmod(int(self._owner[place]), out.mask.shape[1])
            count, first = int(length[place]), int(start[place])
            out.tokens[at][:count] = tokens[(slice(first, first + count), *place)]
            out.logp[at][:count] = logp[(slice(first, first + count), *place)]
            out.mask[at][:count] = True
            out.ended[at] = int(out.tokens[at][count - 1]) in self._how["eos_ids"]
            self._owner[place] = -1
            ended.append(at)
        return sorted(ended)

    def _next(self, cursor: int) -> None:
        """Starts the next stage: with other rows, or with more room for the same."""
        live = int((self._by_device() >= 0).sum(1).max())
        rows = self._owner.size // self._devices
        if self._waiting and live + self._new_rows() <= rows:
            if not self._by_row:
                cursor = self._regroup(rows, cursor)
            while self._waiting and live + self._new_rows() <= rows:
                live += self._new_rows()
                self._refill()
        elif not self._waiting and live <= next((n for n in self._sizes if n < rows), -1):
            cursor = self._regroup(min(n for n in self._sizes if n >= live), cursor)
        elif self._state.tokens.shape[0] < self._rooms[-1]:
            room = next(n for n in self._rooms if n > self._state.tokens.shape[0])
            self._state = _lengthen(self._config, self._state, capacity=room)
        else:
            cursor = self._regroup(rows, cursor)
        self._run(self._state, cursor)

    def _by_device(self) -> np.ndarray:
        """Returns the owners of each device's rows."""
        return blocked(self._owner, self._cut)

    def _regroup(self, rows: int, cursor: int) -> int:
        """Gathers the live rows of each device among so many; returns the cursor, which may have moved back."""
        owner = self._by_device()
        # Cursors and starts are multiples of the tokens between two tests.
        offset = int(blocked(self._starts(), self._cut)[owner >= 0].min(initial=cursor))
        index, taken = np.zeros((self._devices, rows), np.int32), np.full((self._devices, rows), -1)
        for device, held in enumerate(owner):
            stay = np.flatnonzero(held >= 0)
            index[device, : len(stay)], taken[device, : len(stay)] = stay, held[stay]
        shrunk = self._sizes.index(rows) if rows in self._sizes else 0
        cursor -= offset
        room = next((n for n in self._rooms[shrunk:] if 4 * cursor <= 3 * n), self._rooms[-1])
        shift = np.int32(offset) if offset else None
        self._state = _regroup(self._config, self._state, index, taken >= 0, shift, capacity=room, blocks=self._cut)
        self._owner, self._by_row = taken.reshape(-1, 1), True
        self._config, self._cut = by_row(self._first[0]), (self._devices, 1)
        return cursor

    def _refill(self) -> None:
        """Puts the next prompts in the places of rows that have ended."""
        group, (_, cut) = self._keys.shape[1], self._first
        fresh, self._waiting = self._waiting[: self._wave], self._waiting[self._wave :]
        new = blocked(np.asarray(fresh)[:, None] * group + np.arange(group), cut)
        owner = self._by_device()
        places = np.stack([np.flatnonzero(held < 0)[: new.shape[1]] for held in owner]).astype(np.int32)
        np.put_along_axis(owner, places, new, axis=1)
        begun = self._begin(fresh, self._how["check_every"])
        self._state = _refill(self._config, self._state, begun, places, fresh_blocks=cut)
        self._owner = owner.reshape(-1, 1)


def _blocks(config: DecoderConfig) -> tuple[int, int]:
    """Returns over how many devices of the mesh in force prompts, and the rows of a prompt, are spread."""
    mesh, rules = jax.sharding.get_abstract_mesh(), config.rules
    return devices_along(mesh, rules.axes("prompt")), devices_along(mesh, rules.axes("sample"))


def _halves(most: int, fewest: int) -> list[int]:
    """Returns `most` and its halves down to `fewest`, the largest first.

    >>> _halves(64, 8), _halves(4, 8)
    ([64, 32, 16, 8], [4])
    """
    sizes = [most]
    while sizes[-1] > fewest:
        sizes.append(max(-(-sizes[-1] // 2), fewest))
    return sizes


def _rooms(most: int, step: int) -> list[int]:
    """Returns the tokens that stages have room for, each twice the one before, in multiples of `step`.

    >>> _rooms(512, 8), _rooms(50, 8)
    ([128, 256, 512], [56])
    """
    rooms = [-(-most // step) * step]
    while rooms[0] > SHORTEST:
        rooms.insert(0, -(-rooms[0] // 2 // step) * step)
    return rooms

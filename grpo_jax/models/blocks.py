"""Attention cut into blocks of queries and keys, those in which no query sees a key left out.

Axes: P prompts, G completions, Q queries, U keys, N blocks of queries, M blocks of keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

Carry = Any


def pieces(length: int, block: int | None) -> tuple[int, int]:
    """Returns how many pieces of at most `block` hold `length`, and how long each is; None is one piece.

    >>> pieces(300, 128), pieces(300, None)
    ((3, 100), (1, 300))
    """
    number = 1 if block is None else max(1, -(-length // block))
    return number, -(-length // number)


def padded(x: Array, block: int | None, axis: int) -> Array:
    """Returns `x` with zeros behind it on an axis, so that its pieces are of one length."""
    number, size = pieces(x.shape[axis], block)
    return jnp.pad(x, [(0, number * size - x.shape[axis] if i == axis % x.ndim else 0) for i in range(x.ndim)])


def cut(x: Array, i: Int[Array, ""], size: int, axis: int) -> Array:
    """Returns piece `i` of an axis; an axis that is one piece, or the same for all, is returned whole."""
    return x if x.shape[axis] in (1, size) else jax.lax.dynamic_slice_in_dim(x, i * size, size, axis)


def over(function: Callable[[Carry, Any], tuple[Carry, Any]], carry: Carry, number: int) -> tuple[Carry, Any]:
    """Returns the carry after all pieces, as `lax.scan` does, and what they put out, joined along axis 3."""
    if number == 1:
        return function(carry, 0)
    carry, out = jax.lax.scan(function, carry, jnp.arange(number))
    joined = (jnp.moveaxis(x, 0, 3) for x in jax.tree.leaves(out))
    joined = [x.reshape(*x.shape[:3], -1, *x.shape[5:]) for x in joined]
    return carry, jax.tree.unflatten(jax.tree.structure(out), joined)


class Blocks(NamedTuple):
    """A segment's blocks of keys, and which of them each block of queries needs."""

    mask: Bool[Array, "#P #G #Q U"]
    queries: int
    """Queries of a block."""
    keys: int
    """Keys of a block."""
    number: int
    """M."""
    first: Int[Array, "N"] | None
    last: Int[Array, "N"] | None
    """The blocks from `first` to before `last` have keys that are seen; None where M is 1."""

    def of_queries(self, x: Array, i: Any) -> Array:
        """Returns piece `i` of what has an axis of queries in the fourth place."""
        return cut(x, i, self.queries, 3)

    def fold(
        self, i: Any, function: Callable[..., Carry], carry: Carry, pair: tuple[Array, Array], sums: Any = None
    ) -> Any:
        """Returns the carry after the blocks of keys that the queries of piece `i` need.

        Args:
          function: `(carry, key, value, mask)` to the carry; with `sums`, to it and what it adds to them.
          pair: keys, whose axis is the last, and values, whose axis is the last but one.
          sums: two, each of the keys' shape; the result is then the carry, and these.
        """

        def step(j: Any, both: Any) -> Any:
            carry, sums = both
            parts = tuple(cut(x, j, self.keys, axis) for x, axis in zip(pair, (-1, -2), strict=True))
            mask = cut(cut(self.mask, i, self.queries, 2), j, self.keys, 3)[:, None, :, :, None]
            carry = function(carry, *parts, mask)
            if sums is not None:
                carry, more = carry
                sums = tuple(self._added(x, j, y) for x, y in zip(sums, more, strict=True))
            return carry, sums

        both = carry, sums
        both = step(0, both) if self.number == 1 else jax.lax.fori_loop(self.first[i], self.last[i], step, both)
        return both[0] if sums is None else both

    def _added(self, x: Array, j: Any, more: Array) -> Array:
        if self.number == 1:
            return x + more
        return jax.lax.dynamic_update_slice_in_dim(x, cut(x, j, self.keys, -1) + more, j * self.keys, -1)


def blocks(mask: Bool[Array, "#P #G #Q U"], queries: int, block: int | None) -> Blocks:
    """Returns the blocks of a segment with this mask, for so many queries."""
    (n, size), (m, keys) = pieces(queries, block), pieces(mask.shape[-1], block)
    if m == 1:
        return Blocks(mask, size, keys, m, None, None)
    rows = n if mask.shape[2] > 1 else 1
    seen = mask.reshape(*mask.shape[:2], rows, -1, m, keys).any((0, 1, 3, 5))
    seen = jnp.broadcast_to(seen, (n, m))
    first = jnp.argmax(seen, axis=1)
    last = jnp.where(seen.any(1), m - jnp.argmax(seen[:, ::-1], axis=1), first)
    return Blocks(mask, size, keys, m, first, last)

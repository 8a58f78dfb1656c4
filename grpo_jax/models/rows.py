"""Completions in rows of tokens: how several of them share a row, and which prompt each follows.

The rows of a model's forward pass need not be the completions of a group. A *cell* holds N prompts and G rows of U
tokens; a row holds completions one after the other, each of any prompt of its cell. A token sees its prompt and the
earlier tokens of its own completion, wherever they stand.

Axes: P cells, N prompts of a cell, S prompt tokens, G rows, U tokens of a row.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from grpo_jax.types import PromptBatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
    """What the tokens of packed rows belong to."""

    segment: Int[Array, "P G U"]
    """Tokens of one row with one number are one completion, in their order."""
    index: Int[Array, "P G U"]
    """Place of the token in its completion, from 0."""
    slot: Int[Array, "P G U"]
    """Which prompt of its cell the completion follows."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """What a model reads: prompts, and completions in rows. Padding may hold any token."""

    prompt: PromptBatch
    """Tokens and mask `[P, N, S]`."""
    tokens: Int[Array, "P G U"]
    """The tokens that are predicted."""
    packing: Packing | None = None
    """None: every row is one completion, and the cell has one prompt."""

    @property
    def last(self) -> Int[Array, "P #G #U"]:
        """The index of the last token of each token's prompt."""
        return self._of_prompt(self.prompt.mask.sum(-1) - 1)

    @property
    def index(self) -> Int[Array, "#P #G U"]:
        """The place of each token in its completion."""
        return jnp.arange(self.tokens.shape[-1])[None, None] if self.packing is None else self.packing.index

    @property
    def inputs(self) -> Int[Array, "P G U"]:
        """The token before each: inside a completion its predecessor, before the first the last one of the prompt."""
        tokens, last = self.prompt.tokens, self.prompt.mask.sum(-1, keepdims=True) - 1
        opening = self._of_prompt(jnp.take_along_axis(tokens, last, axis=-1)[..., 0])
        before = jnp.pad(self.tokens[..., :-1], ((0, 0), (0, 0), (1, 0)))
        return jnp.where(self.index == 0, opening, before)

    def _of_prompt(self, x: Int[Array, "P N"]) -> Int[Array, "P #G #U"]:
        """Returns what belongs to each token's prompt."""
        if self.packing is None:
            return x[..., None]
        slot = self.packing.slot
        return jnp.take_along_axis(x, slot.reshape(len(slot), -1), axis=-1).reshape(slot.shape)


def unpacked(prompt: PromptBatch, tokens: Int[Array, "P G T"]) -> Rows:
    """Returns completions `[P, G, T]` of prompts `[P, S]` as rows, one for each."""
    return Rows(prompt=jax.tree.map(lambda x: x[:, None], prompt), tokens=tokens)

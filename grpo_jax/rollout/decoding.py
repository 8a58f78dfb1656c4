"""Decoding as functions of one state: `begin` reads prompts, `advance` draws, `regroup` lets rows come and go.

`sample` is the plain loop, one compiled program from prompts to completions: begin, then advance to the end.
`stages.py` calls them by themselves, so that rows that have ended leave the loop.

All rows write their tokens, keys and values at one cursor: the write is one slice, and stays in place. A row that began
later has its own `start`, before which it sees nothing.

Axes: P prompts, G rows of a prompt, U capacity of the own segments.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from grpo_jax.mesh.rules import constrain
from grpo_jax.mesh.settings import Rules
from grpo_jax.models.attention import Shared
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.context import before_last
from grpo_jax.models.decoder import Cache, Params, constrain_cache, decode, empty_cache, last_token, prefill
from grpo_jax.rollout.sampler import Sampler
from grpo_jax.types import PromptBatch, Rollout

GRID = ("prompt", "sample")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """Rows that are being drawn."""

    prompt: PromptBatch
    """`[P, S]`."""
    segments: tuple[Shared, ...]
    """Keys and values of the prompts, by layer."""
    cache: Cache
    """Those of the rows, with room for U tokens."""
    keys: Key[Array, "P G"]
    start: Int[Array, "P G"] | None
    """The cursor at which each row began; None where all began at 0."""
    done: Bool[Array, "P G"]
    token: Int[Array, "P G"]
    """The next input of each row."""
    length: Int[Array, "P G"]
    """Tokens drawn."""
    tokens: Int[Array, "U P G"]
    """What was drawn at each cursor; 0 where nothing was."""
    logp: Float[Array, "U P G"]
    cursor: Int[Array, ""]
    """Where the next token is written."""


def begin(
    config: DecoderConfig, published: Params, prompt: PromptBatch, keys: Key[Array, "P G"], *, capacity: int
) -> Decoding:
    """Returns rows that have not drawn a token yet, with room for `capacity`. The prompts are computed once."""
    P, G = keys.shape

    def grid(x: Array, *before: None) -> Array:
        return constrain(config.rules, x, *before, *GRID)

    return Decoding(
        prompt=prompt,
        segments=prefill(config, published, prompt),
        cache=empty_cache(config, P, G, capacity),
        keys=keys,
        start=None,
        done=grid(jnp.zeros((P, G), bool)),
        token=grid(jnp.broadcast_to(last_token(prompt)[:, None], (P, G))),
        length=grid(jnp.zeros((P, G), jnp.int32)),
        tokens=grid(jnp.zeros((capacity, P, G), jnp.int32), None),
        logp=grid(jnp.zeros((capacity, P, G), jnp.float32), None),
        cursor=jnp.zeros((), jnp.int32),
    )


def advance(
    config: DecoderConfig,
    published: Params,
    state: Decoding,
    enough: Int[Array, ""] | int = 0,
    until: Int[Array, ""] | int = 0,
    *,
    max_tokens: int,
    eos_ids: tuple[int, ...],
    sampler: Sampler,
    check_every: int,
    blocks: tuple[int, int] = (1, 1),
) -> Decoding:
    """Returns the rows after more tokens: until all have ended, or the room is used up, or few are left.

    Whether that is so is tested every `check_every` tokens, of which the room is a multiple: on a GPU each test waits
    for the host.

    Args:
      enough: live rows of a block at which to stop.
      until: the cursor from which on rows are drawn to their ends, however few they are.
      blocks: how many devices the prompts, and the rows of a prompt, are spread over.
    """
    ends = jnp.asarray(eos_ids, jnp.int32)
    capacity = state.tokens.shape[0]
    start = jnp.zeros_like(state.length) if state.start is None else state.start
    uniform = jax.vmap(lambda u: _uniform(state.keys, jnp.maximum(u - start, 0)))(jnp.arange(capacity))

    def step(state: Decoding) -> Decoding:
        logits, cache = decode(
            config, published, state.prompt, state.segments, state.cache, state.token, state.cursor, state.start
        )
        token, logp = sampler(logits, uniform[state.cursor])
        live = ~state.done
        token, length = jnp.where(live, token, 0), state.length + live
        ended = (token[..., None] == ends).any(-1) if eos_ids else False
        return dataclasses.replace(
            state,
            cache=cache,
            token=token,
            length=length,
            done=state.done | ended | (length >= max_tokens),
            tokens=state.tokens.at[state.cursor].set(token),
            logp=state.logp.at[state.cursor].set(jnp.where(live, logp, 0.0)),
            cursor=state.cursor + 1,
        )

    def running(state: Decoding) -> Array:
        fewest = jnp.where(state.cursor < until, enough, 0)
        return (state.cursor < capacity) & (_fullest(~state.done, blocks) > fewest)

    def several(state: Decoding) -> Decoding:
        return jax.lax.fori_loop(0, check_every, lambda _, state: step(state), state)

    return jax.lax.while_loop(running, several, state)


def regroup(
    config: DecoderConfig,
    state: Decoding,
    rows: Int[Array, "D r"],
    live: Bool[Array, "D r"],
    offset: Int[Array, ""] | None = None,
    fresh: Decoding | None = None,
    *,
    capacity: int,
    blocks: tuple[int, int] = (1, 1),
    fresh_blocks: tuple[int, int] = (1, 1),
) -> Decoding:
    """Returns chosen rows alone, each with a prompt of its own `[D r, 1]`, with room for `capacity` tokens.

    Rows stay on their device: block d of the result holds rows of block d. The result is to be decoded with
    `by_row(config)`, whose rules spread rows as those before spread prompts and their rows.

    Args:
      rows: the rows of each block that stay, by their place in it (prompt * rows of a prompt + row). Behind the last
        one of the state follow those of `fresh`, which begin at the cursor.
      live: False for a place that stays empty.
      offset: tokens to cut off: no row that stays has begun before. None cuts none.
      fresh: rows that have not drawn a token.
      blocks: how many devices prompts, and the rows of a prompt, are spread over; D is their product.
      fresh_blocks: the same for `fresh`.
    """
    after, cursor = by_row(config), state.cursor - (0 if offset is None else offset)
    count = state.done.size // (blocks[0] * blocks[1])
    chosen = _Chosen(rules=after.rules, rows=rows, new=rows >= count, blocks=blocks, offset=offset, room=capacity)
    spread, old, new = chosen.spread, chosen.old, chosen.new
    start = None
    if state.start is not None or fresh is not None:
        start = jnp.zeros_like(state.length) if state.start is None else state.start
        start = old(start - (state.cursor - cursor), cursor)
    each = [(state, blocks)] if fresh is None else [(state, blocks), (fresh, fresh_blocks)]
    of_row = _prompt_of(
        rows, new, count, len(state.keys) // blocks[0], [one.keys.shape[1] // cut[1] for one, cut in each]
    )

    def of_prompt(*leaves: Array) -> Array:
        """Of `[P, ...]`, of the state and behind it of `fresh`; a block's prompts are on all devices of their rows."""
        held = [
            jnp.repeat(x.reshape(cut[0], -1, *x.shape[1:]), cut[1], axis=0)
            for x, (_, cut) in zip(leaves, each, strict=True)
        ]
        return spread(_take(jnp.concatenate(held, axis=1), of_row))[:, 0]

    prompt = jax.tree.map(of_prompt, *(one.prompt for one, _ in each))
    segments = jax.tree.map(of_prompt, *([(layer.key, layer.value) for layer in one.segments] for one, _ in each))
    seen = before_last(prompt)
    keys = jnp.concatenate([blocked(one.keys, cut) for one, cut in each], axis=1)
    return Decoding(
        prompt=prompt,
        segments=tuple(Shared(key, value, seen) for key, value in segments),
        cache=tuple(constrain_cache(after, chosen.cache(key, 4), chosen.cache(value, 3)) for key, value in state.cache),
        keys=spread(_take(keys, rows)),
        start=start,
        done=old(state.done) | spread(~live),
        token=jnp.where(spread(new), last_token(prompt)[:, None], old(state.token)),
        length=old(state.length),
        tokens=chosen.drawn(state.tokens),
        logp=chosen.drawn(state.logp),
        cursor=cursor,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Chosen:
    """The rows that `regroup` keeps, and how it takes them out of an array."""

    rules: Rules
    rows: Int[Array, "D r"]
    new: Bool[Array, "D r"]
    """Rows that begin, which have nothing in the arrays yet."""
    blocks: tuple[int, int]
    offset: Int[Array, ""] | None
    room: int

    def spread(self, x: Array) -> Array:
        """Of `[D, r, ...]`: `[D r, 1, ...]`."""
        return constrain(self.rules, x.reshape(-1, *x.shape[2:]), "prompt")[:, None]

    def old(self, x: Array, otherwise: Array | int = 0) -> Array:
        """Of `[P, G, ...]`; for a row that begins, `otherwise`."""
        x = _take(blocked(x, self.blocks), self.rows)
        new = self.new.reshape(*self.new.shape, *(1,) * (x.ndim - 2))
        return self.spread(jnp.where(new, jnp.asarray(otherwise, x.dtype), x))

    def drawn(self, x: Array) -> Array:
        """Of `[U, P, G]`."""
        return jnp.moveaxis(self.old(jnp.moveaxis(self._history(x, 0), 0, 2)), 2, 0)

    def cache(self, x: Array, axis: int) -> Array:
        """Of `[P, K, G, ...]`, whose tokens are on `axis`."""
        return jnp.moveaxis(self.old(jnp.moveaxis(self._history(x, axis), 2, 1)), 1, 2)

    def _history(self, x: Array, axis: int) -> Array:
        """The tokens from `offset` on, with the new room. What is behind the cursor is never seen."""
        return _with_room(x if self.offset is None else jnp.roll(x, -self.offset, axis), axis, self.room)


def _prompt_of(
    rows: Int[Array, "D r"], new: Bool[Array, "D r"], count: int, prompts: int, group: list[int]
) -> Int[Array, "D r"]:
    """Returns which prompt of its block each row has, those of the rows that begin behind the others."""
    return jnp.where(new, prompts + (rows - count) // group[-1], rows // group[0])


def lengthen(config: DecoderConfig, state: Decoding, *, capacity: int) -> Decoding:
    """Returns the rows with room for `capacity` tokens."""
    cache = [(_with_room(key, 4, capacity), _with_room(value, 3, capacity)) for key, value in state.cache]
    return dataclasses.replace(
        state,
        cache=tuple(constrain_cache(config, *layer) for layer in cache),
        tokens=constrain(config.rules, _with_room(state.tokens, 0, capacity), None, *GRID),
        logp=constrain(config.rules, _with_room(state.logp, 0, capacity), None, *GRID),
    )


def by_row(config: DecoderConfig) -> DecoderConfig:
    """Returns the configuration for rows that each have a prompt of their own: the mesh's axes of both split them."""
    rules = config.rules
    return dataclasses.replace(
        config, rules=dataclasses.replace(rules, prompt=rules.axes("prompt") + rules.axes("sample"), sample=None)
    )


def sample(
    config: DecoderConfig,
    published: Params,
    prompt: PromptBatch,
    keys: Key[Array, "P G"],
    *,
    max_tokens: int,
    eos_ids: tuple[int, ...],
    sampler: Sampler | None = None,
    check_every: int = 8,
) -> Rollout:
    """Returns completions of every prompt, with the mask and log-probability of each token drawn.

    The prompts are computed once; each completion owns a cache that the loop updates in place.

    Args:
      published: weights in the rollout layout (`publish`).
      keys: one per completion (`sample_keys`); token t uses `fold_in(key, t)`.
      max_tokens: tokens drawn at most, T.
      eos_ids: tokens that end a completion; none means that all run to `max_tokens`.
      sampler: how a token is drawn. None draws from the whole distribution at the model's temperature, which is the
        one that is scored: what training needs.
      check_every: K, tokens between two tests for the end. The last round may run past `max_tokens`.
    """
    sampler = Sampler(temperature=config.temperature) if sampler is None else sampler
    state = begin(config, published, prompt, keys, capacity=-(-max_tokens // check_every) * check_every)
    state = advance(
        config, published, state, max_tokens=max_tokens, eos_ids=eos_ids, sampler=sampler, check_every=check_every
    )
    tokens, logp = (jnp.moveaxis(x[:max_tokens], 0, -1) for x in (state.tokens, state.logp))
    mask = jnp.arange(max_tokens) < state.length[..., None]
    ends = jnp.asarray(eos_ids, jnp.int32)
    ended = ((tokens[..., None] == ends).any(-1) & mask).any(-1) if eos_ids else jnp.zeros(keys.shape, bool)
    return Rollout(tokens=tokens, mask=mask, logp=logp, ended=ended)


def _with_room(x: Array, axis: int, room: int) -> Array:
    """Returns `x` with an axis cut or padded to `room`."""
    x = jax.lax.slice_in_dim(x, 0, min(x.shape[axis], room), axis=axis)
    return jnp.pad(x, [(0, room - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])


def blocked(x: Array, blocks: tuple[int, int]) -> Array:
    """Returns `[P, G, ...]` as `[D, rows of a block, ...]`."""
    d, g = blocks
    P, G = x.shape[:2]
    x = x.reshape(d, P // d, g, G // g, *x.shape[2:]).swapaxes(1, 2)
    return x.reshape(d * g, P // d * (G // g), *x.shape[4:])


def _take(x: Array, index: Int[Array, "D r"]) -> Array:
    """Returns `x[d, index[d, r]]`, with indices outside of it at its ends."""
    return jax.vmap(lambda values, i: values.at[i].get(mode="clip"))(x, index)


def _fullest(live: Bool[Array, "P G"], blocks: tuple[int, int]) -> Int[Array, ""]:
    """Returns the most live rows of a block."""
    return blocked(live, blocks).sum(1).max()


def _uniform(keys: Key[Array, "P G"], t: Int[Array, "P G"]) -> Float[Array, "P G"]:
    """Returns one number in [0, 1) per completion, for its token t."""
    return jax.vmap(jax.vmap(lambda key, t: jax.random.uniform(jax.random.fold_in(key, t))))(keys, t)

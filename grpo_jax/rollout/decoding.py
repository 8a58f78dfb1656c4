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
    *,
    capacity: int,
    blocks: tuple[int, int] = (1, 1),
) -> Decoding:
    """Returns chosen rows alone, each with a prompt of its own `[D r, 1]`, with room for `capacity` tokens.

    Rows stay on their device: block d of the result holds rows of block d. The result is to be decoded with
    `by_row(config)`, whose rules spread rows as those before spread prompts and their rows.

    Args:
      rows: the rows of each block that stay, by their place in it (prompt * rows of a prompt + row).
      live: False for a place that stays empty.
      offset: tokens to cut off: no row that stays has begun before. None cuts none.
      blocks: how many devices prompts, and the rows of a prompt, are spread over; D is their product.
    """
    after = by_row(config)

    def spread(x: Array) -> Array:
        """Of `[D, r, ...]`: `[D r, 1, ...]`."""
        return constrain(after.rules, x.reshape(-1, *x.shape[2:]), "prompt")[:, None]

    def chosen(x: Array) -> Array:
        """Of `[P, G, ...]`."""
        return spread(_take(blocked(x, blocks), rows))

    def of_prompt(x: Array) -> Array:
        """Of `[P, ...]`."""
        return spread(_take(_of_blocks(x, blocks), rows // (state.keys.shape[1] // blocks[1])))[:, 0]

    def kept(x: Array, axis: int) -> Array:
        """The tokens from `offset` on, with the new room. What is behind the cursor is never seen."""
        return _with_room(x if offset is None else jnp.roll(x, -offset, axis), axis, capacity)

    def cache(x: Array, axis: int) -> Array:
        """Of `[P, K, G, ...]`, whose tokens are on `axis`."""
        return jnp.moveaxis(chosen(jnp.moveaxis(kept(x, axis), 2, 1)), 1, 2)

    def drawn(x: Array) -> Array:
        """Of `[U, P, G]`."""
        return jnp.moveaxis(chosen(jnp.moveaxis(kept(x, 0), 0, 2)), 2, 0)

    prompt, shift = jax.tree.map(of_prompt, state.prompt), 0 if offset is None else offset
    seen = before_last(prompt)
    return Decoding(
        prompt=prompt,
        segments=tuple(Shared(of_prompt(layer.key), of_prompt(layer.value), seen) for layer in state.segments),
        cache=tuple(constrain_cache(after, cache(key, 4), cache(value, 3)) for key, value in state.cache),
        keys=chosen(state.keys),
        start=None if state.start is None else chosen(state.start) - shift,
        done=chosen(state.done) | spread(~live),
        token=chosen(state.token),
        length=chosen(state.length),
        tokens=drawn(state.tokens),
        logp=drawn(state.logp),
        cursor=state.cursor - shift,
    )


def refill(
    config: DecoderConfig,
    state: Decoding,
    fresh: Decoding,
    places: Int[Array, "D n"],
    *,
    fresh_blocks: tuple[int, int] = (1, 1),
) -> Decoding:
    """Returns the state of a `regroup` with the rows of `fresh` in the places of others, which have ended.

    They begin at the cursor, so that caches stay as they are: what lies before is not seen.

    Args:
      config: that of rows with a prompt of their own (`by_row`).
      places: of each block, one for each of its rows of `fresh`.
    """
    count, devices = places.shape[1], len(places)
    of_prompt = jnp.broadcast_to(jnp.arange(count) // (fresh.keys.shape[1] // fresh_blocks[1]), places.shape)

    def put(x: Array, new: Array) -> Array:
        """Puts `[D, n, ...]` into `[D r, ...]`."""
        held = x.reshape(devices, -1, *x.shape[1:])
        held = jax.vmap(lambda x, at, new: x.at[at].set(new))(held, places, new.reshape(*places.shape, *x.shape[1:]))
        return constrain(config.rules, held.reshape(x.shape), "prompt")

    def put_prompt(x: Array, new: Array) -> Array:
        return put(x, _take(_of_blocks(new, fresh_blocks), of_prompt))

    prompt = jax.tree.map(put_prompt, state.prompt, fresh.prompt)
    kept = [(layer.key, layer.value) for layer in state.segments]
    segments = jax.tree.map(put_prompt, kept, [(layer.key, layer.value) for layer in fresh.segments])
    seen, begun = before_last(prompt), jnp.broadcast_to(state.cursor, places.shape)
    return dataclasses.replace(
        state,
        prompt=prompt,
        segments=tuple(Shared(key, value, seen) for key, value in segments),
        keys=put(state.keys, blocked(fresh.keys, fresh_blocks)),
        start=put(jnp.zeros_like(state.length) if state.start is None else state.start, begun),
        done=put(state.done, jnp.zeros_like(places, bool)),
        token=put(state.token, blocked(fresh.token, fresh_blocks)),
        length=put(state.length, jnp.zeros_like(places)),
    )


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


def _of_blocks(x: Array, blocks: tuple[int, int]) -> Array:
    """Returns `[P, ...]` as `[D, prompts of a block, ...]`: a block's prompts are on all devices of their rows."""
    return jnp.repeat(x.reshape(blocks[0], -1, *x.shape[1:]), blocks[1], axis=0)


def _take(x: Array, index: Int[Array, "D r"]) -> Array:
    """Returns `x[d, index[d, r]]`, with indices outside of it at its ends."""
    return jax.vmap(lambda values, i: values.at[i].get(mode="clip"))(x, index)


def _fullest(live: Bool[Array, "P G"], blocks: tuple[int, int]) -> Int[Array, ""]:
    """Returns the most live rows of a block."""
    return blocked(live, blocks).sum(1).max()


def _uniform(keys: Key[Array, "P G"], t: Int[Array, "P G"]) -> Float[Array, "P G"]:
    """Returns one number in [0, 1) per completion, for its token t."""
    return jax.vmap(jax.vmap(lambda key, t: jax.random.uniform(jax.random.fold_in(key, t))))(keys, t)

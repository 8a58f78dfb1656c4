"""The attention context of a layer: the rotary positions of its queries and keys, and the keys that each query sees.

A model has at most two kinds of layers. Global ones see every earlier token; local ones see a window, and may rotate by
frequencies of their own. Positions count across both segments: input u of a completion stands at `n - 1 + u` after
a prompt of n tokens, because its segment begins with the last prompt token.

Axes: P cells, N prompts of a cell, S prompt tokens, G rows, Q queries, U keys of a row, Z = N x S keys of the prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.rotary import Rope, rope
from grpo_jax.models.rows import Rows
from grpo_jax.types import PromptBatch


class AttentionContext(NamedTuple):
    """What one kind of layer knows of the places of some queries."""

    rope: Rope
    own_mask: Bool[Array, "#P #G Q U"]
    """Keys of the own segment that a query sees."""
    prompt_mask: Bool[Array, "P #G #Q Z"] | None
    """Prompt tokens that a completion's query sees; None inside a prompt."""


Contexts = tuple[AttentionContext, AttentionContext]
"""Those of global and of local layers. Parts that are equal are the same arrays."""

Seen = Callable[[int | None], jax.Array]
"""The keys that queries see within a window, or without one."""


def causal(index: Int[Array, "Q"], keys: int, *, window: int | None = None) -> Bool[Array, "Q U"]:
    """Returns which of the keys 0, 1, ... of its segment each query sees: those up to its own index, within `window`.

    >>> causal(jnp.arange(3), 3, window=2).tolist()
    [[True, False, False], [True, True, False], [False, True, True]]
    """
    key = jnp.arange(keys)
    seen = key <= index[:, None]
    return seen if window is None else seen & (key > index[:, None] - window)


def before_last(prompt: PromptBatch) -> Bool[Array, "P 1 1 S"]:
    """Returns the prompt tokens of the shared segment: the last one opens the completion's own segment."""
    return (jnp.arange(prompt.tokens.shape[-1]) < prompt.mask.sum(-1, keepdims=True) - 1)[:, None, None]


def prompt_contexts(config: DecoderConfig, prompt: PromptBatch) -> Contexts:
    """Returns the contexts of all tokens inside the prompts `[P, N, S]`."""
    length = prompt.tokens.shape[-1]
    index = jnp.arange(length)
    return _contexts(config, index[None, None], length, lambda window: causal(index, length, window=window)[None, None])


def row_contexts(config: DecoderConfig, rows: Rows) -> Contexts:
    """Returns the contexts of all inputs of some rows."""
    length, last, packing = rows.tokens.shape[-1], rows.last, rows.packing
    place = jnp.arange(rows.prompt.tokens.shape[-1])
    position = last + rows.index
    same = None if packing is None else packing.segment[..., :, None] == packing.segment[..., None, :]

    def own(window: int | None) -> jax.Array:
        seen = causal(jnp.arange(length), length, window=window)
        return seen[None, None] if packing is None else seen & same

    def of_prompt(window: int | None) -> jax.Array:
        seen = place < last[..., None]
        seen = seen if window is None else seen & (place > position[..., None] - window)
        if packing is None or rows.prompt.tokens.shape[1] == 1:
            return seen
        # Key s of prompt n stands at n S + s.
        number = jnp.arange(rows.prompt.tokens.shape[1])
        mine = packing.slot[..., None, None] == number[:, None]
        return (mine & seen[..., None, :]).reshape(*seen.shape[:-1], -1)

    return _contexts(config, position, length, own, of_prompt, len(place))


def decoding_contexts(
    config: DecoderConfig, prompt: PromptBatch, cursor: Int[Array, ""], start: Int[Array, "P G"] | None, keys: int
) -> Contexts:
    """Returns the contexts of the inputs at `cursor` of completions that began at `start`, with room for `keys`.

    Where all began at 0 (None), angles and masks are the same for all completions of a prompt.

    Args:
      prompt: tokens and mask `[P, S]`.
    """
    last = prompt.mask.sum(-1)[:, None] - 1
    position = (last + cursor if start is None else last + cursor - start)[..., None]
    place = jnp.arange(prompt.tokens.shape[-1])

    def own(window: int | None) -> jax.Array:
        seen = causal(cursor[None], keys, window=window)[None, None]
        return seen if start is None else seen & (jnp.arange(keys) >= start[..., None, None])

    def of_prompt(window: int | None) -> jax.Array:
        return before_last(prompt) if window is None else before_last(prompt) & (place > position[..., None] - window)

    return _contexts(config, position, keys, own, of_prompt, len(place))


def of_layer(contexts: Contexts, local: bool | Bool[Array, ""]) -> AttentionContext:
    """Returns the context of a global or a local layer. Only parts that differ are selected where `local` is traced."""
    of_global, of_local = contexts
    if isinstance(local, bool):
        return of_local if local else of_global
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(local, b, a), of_global, of_local)


def _contexts(
    config: DecoderConfig,
    position: Int[Array, "#P #G Q"],
    keys: int,
    own: Seen,
    of_prompt: Seen | None = None,
    prompt_keys: int = 0,
) -> Contexts:
    """Returns both contexts, of the keys that are seen without a window and within the model's."""
    angles = rope(position, width=config.head_width, theta=config.rope_theta, scaling=config.rope_scaling)
    of_global = of_local = AttentionContext(angles, own(None), None if of_prompt is None else of_prompt(None))
    if not any(config.local):
        return of_global, of_local
    if config.local_rope_theta is not None:
        of_local = of_local._replace(rope=rope(position, width=config.head_width, theta=config.local_rope_theta))
    # A window that reaches over all there is hides nothing, and costs nothing.
    window = config.window
    if window is not None and keys > window:
        of_local = of_local._replace(own_mask=own(window))
    if window is not None and of_prompt is not None and prompt_keys + keys - 1 > window:
        of_local = of_local._replace(prompt_mask=of_prompt(window))
    return of_global, of_local

"""The attention context of a layer: the rotary positions of its queries and keys, and the keys that each query sees.

A model has at most two kinds of layers. Global ones see every earlier token; local ones see a window, and may rotate by
frequencies of their own. Positions count across both segments: input u of a completion stands at `n - 1 + u` after
a prompt of n tokens, because its segment begins with the last prompt token.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.rotary import Rope, rope
from grpo_jax.types import PromptBatch


class AttentionContext(NamedTuple):
    """What one kind of layer knows of the places of some queries."""

    rope: Rope
    own_mask: Bool[Array, "Q U"]
    """Keys of the own segment that a query sees."""
    prompt_mask: Bool[Array, "P #Q S"] | None
    """Prompt tokens that a completion's query sees; None inside a prompt."""


Contexts = tuple[AttentionContext, AttentionContext]
"""Those of global and of local layers. Parts that are equal are the same arrays."""


def causal(index: Int[Array, "Q"], keys: int, *, window: int | None = None) -> Bool[Array, "Q U"]:
    """Returns which of the keys 0, 1, ... of its segment each query sees: those up to its own index, within `window`.

    >>> causal(jnp.arange(3), 3, window=2).tolist()
    [[True, False, False], [True, True, False], [False, True, True]]
    """
    key = jnp.arange(keys)
    seen = key <= index[:, None]
    return seen if window is None else seen & (key > index[:, None] - window)


def before_last(prompt: PromptBatch) -> Bool[Array, "P 1 S"]:
    """Returns the prompt tokens of the shared segment: the last one opens the completion's own segment."""
    return jnp.arange(prompt.tokens.shape[-1]) < _last(prompt)[..., None]


def prompt_contexts(config: DecoderConfig, prompt: PromptBatch) -> Contexts:
    """Returns the contexts of all tokens inside the prompts."""
    index = jnp.arange(prompt.tokens.shape[-1])
    return _contexts(config, index[None], index, len(index), None)


def own_contexts(config: DecoderConfig, prompt: PromptBatch, index: Int[Array, "Q"], keys: int) -> Contexts:
    """Returns the contexts of these inputs of an own segment with room for `keys`."""
    return _contexts(config, _last(prompt) + index, index, keys, prompt)


def of_layer(contexts: Contexts, local: bool | Bool[Array, ""]) -> AttentionContext:
    """Returns the context of a global or a local layer. Only parts that differ are selected where `local` is traced."""
    of_global, of_local = contexts
    if isinstance(local, bool):
        return of_local if local else of_global
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(local, b, a), of_global, of_local)


def _contexts(
    config: DecoderConfig,
    position: Int[Array, "P Q"],
    index: Int[Array, "Q"],
    keys: int,
    prompt: PromptBatch | None,
) -> Contexts:
    angles = rope(position, width=config.head_width, theta=config.rope_theta, scaling=config.rope_scaling)
    own_mask = causal(index, keys)
    prompt_mask = None if prompt is None else before_last(prompt)
    of_global = of_local = AttentionContext(angles, own_mask, prompt_mask)
    if not any(config.local):
        return of_global, of_local
    if config.local_rope_theta is not None:
        of_local = of_local._replace(rope=rope(position, width=config.head_width, theta=config.local_rope_theta))
    # A window that reaches over all there is hides nothing, and costs nothing.
    window = config.window
    if window is not None and keys > window:
        of_local = of_local._replace(own_mask=causal(index, keys, window=window))
    if window is not None and prompt is not None and prompt.tokens.shape[-1] + keys - 1 > window:
        place = jnp.arange(prompt.tokens.shape[-1])
        of_local = of_local._replace(prompt_mask=prompt_mask & (place > position[..., None] - window))
    return of_global, of_local


def _last(prompt: PromptBatch) -> Int[Array, "P 1"]:
    """Returns the index of every prompt's last token."""
    return prompt.mask.sum(-1, keepdims=True) - 1

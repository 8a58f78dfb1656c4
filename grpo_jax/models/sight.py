"""What a layer knows of places: how far its queries and keys turn, and which keys a query sees.

A model has at most two kinds of layers. Global ones see every earlier token; local ones see a window, and may turn by
frequencies of their own. Positions count across both segments: input u of a completion stands at `n - 1 + u` after
a prompt of n tokens, because its segment begins with the last prompt token.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.rotary import Rotation, rotation
from grpo_jax.types import PromptBatch


class Sight(NamedTuple):
    """What one kind of layer knows of the places of some queries."""

    turn: Rotation
    own: Bool[Array, "Q U"]
    shared: Bool[Array, "P #Q S"] | None
    """Prompt tokens that a completion's query sees; None inside a prompt."""


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


def prompt_sights(config: DecoderConfig, prompt: PromptBatch) -> tuple[Sight, Sight]:
    """Returns what global and local layers know inside the prompts. Equal parts are the same arrays."""
    index = jnp.arange(prompt.tokens.shape[-1])
    return _sights(config, index[None], index, len(index), None)


def own_sights(config: DecoderConfig, prompt: PromptBatch, index: Int[Array, "Q"], keys: int) -> tuple[Sight, Sight]:
    """Returns what global and local layers know of these inputs of an own segment with room for `keys`."""
    return _sights(config, _last(prompt) + index, index, keys, prompt)


def choose(sights: tuple[Sight, Sight], local: bool | Bool[Array, ""]) -> Sight:
    """Returns the sight of a global or a local layer. Only parts that differ are selected where `local` is traced."""
    far, near = sights
    if isinstance(local, bool):
        return near if local else far
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(local, b, a), far, near)


def _sights(
    config: DecoderConfig,
    position: Int[Array, "P Q"],
    index: Int[Array, "Q"],
    keys: int,
    prompt: PromptBatch | None,
) -> tuple[Sight, Sight]:
    turn = rotation(position, width=config.head_width, theta=config.rope_theta, scaling=config.rope_scaling)
    far = near = Sight(turn, causal(index, keys), None if prompt is None else before_last(prompt))
    if not any(config.local):
        return far, near
    if config.local_rope_theta is not None:
        near = near._replace(turn=rotation(position, width=config.head_width, theta=config.local_rope_theta))
    # A window that reaches over all there is hides nothing, and costs nothing.
    window = config.window
    if window is not None and keys > window:
        near = near._replace(own=causal(index, keys, window=window))
    if window is not None and prompt is not None and prompt.tokens.shape[-1] + keys - 1 > window:
        place = jnp.arange(prompt.tokens.shape[-1])
        near = near._replace(shared=far.shared & (place > position[..., None] - window))
    return far, near


def _last(prompt: PromptBatch) -> Int[Array, "P 1"]:
    """Returns the index of every prompt's last token."""
    return prompt.mask.sum(-1, keepdims=True) - 1

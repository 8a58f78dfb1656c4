"""One attention over two segments of keys and values: the shared prompt and the own completion.

Axes: P prompts, G completions, Q queries, K key/value heads, R queries per key/value head, C head width,
S prompt tokens, U tokens of the own segment.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30
"""Score of a hidden key. Finite, so that a segment without any key still has a maximum."""


class Shared(NamedTuple):
    """Keys and values of the prompts, one copy for all completions of a prompt."""

    key: Float[Array, "P K S C"]
    value: Float[Array, "P K S C"]
    mask: Bool[Array, "P S"]


class Own(NamedTuple):
    """Keys and values of each completion. Keys hold `[C, U]`, the order in which decoding multiplies them."""

    key: Float[Array, "P K G C U"]
    value: Float[Array, "P K G U C"]
    mask: Bool[Array, "Q U"]


def attend(query: Float[Array, "P G Q K R C"], shared: Shared | None, own: Own) -> Float[Array, "P G Q K R C"]:
    """Returns attention of every query over its prompt's keys and its own, under one softmax.

        out_q = (sum_s e_qs v_s + sum_u e_qu v_u) / (sum_s e_qs + sum_u e_qu),   e = exp(q.k / sqrt(C) - max)

    Nothing is repeated along G: the scores against a prompt are one product of its G x Q x R queries with its keys.
    Inside, key/value heads stand before completions, so that every product finds its rows together.

    Gradient: exact, through both segments. The maximum cancels in the quotient and is detached.
    """
    query = jnp.moveaxis(query * query.shape[-1] ** -0.5, 3, 1)
    score = _product("pkgqrc,pkgcu->pkgqru", query, own.key)
    score = jnp.where(own.mask[:, None], score, MASKED)
    top = jax.lax.stop_gradient(score.max(-1, keepdims=True))
    if shared is None:
        weight = jnp.exp(score - top)
        total = weight.sum(-1, keepdims=True)
        out = _product("pkgqru,pkguc->pkgqrc", weight.astype(query.dtype), own.value)
    else:
        shared_score = _product("pkgqrc,pksc->pkgqrs", query, shared.key)
        shared_score = jnp.where(shared.mask[:, None, None, None, None], shared_score, MASKED)
        top = jnp.maximum(top, jax.lax.stop_gradient(shared_score.max(-1, keepdims=True)))
        weight, shared_weight = jnp.exp(score - top), jnp.exp(shared_score - top)
        total = weight.sum(-1, keepdims=True) + shared_weight.sum(-1, keepdims=True)
        out = _product("pkgqru,pkguc->pkgqrc", weight.astype(query.dtype), own.value)
        out += _product("pkgqrs,pksc->pkgqrc", shared_weight.astype(query.dtype), shared.value)
    return jnp.moveaxis((out / total).astype(query.dtype), 1, 3)


def _product(axes: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(axes, left, right, preferred_element_type=jnp.float32)


def causal(length: int) -> Bool[Array, "Q U"]:
    """Returns the mask of a segment in which every query sees the keys up to its own.

    >>> causal(2).tolist()
    [[True, False], [True, True]]
    """
    return jnp.tril(jnp.ones((length, length), bool))


Rotation = tuple[jax.Array, jax.Array]
"""Cosines and sines `[P, 1, Q, C / 2]` of the angles that a layer's queries and keys turn by."""


def rotation(position: Int[Array, "P Q"], *, width: int, theta: float) -> Rotation:
    """Returns cosine and sine of `position * theta ** (-2i / width)`; computed once, used by every layer."""
    half = width // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position.astype(jnp.float32)[:, None, :, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[Array, "P G Q *heads C"], turn: Rotation) -> Float[Array, "P G Q *heads C"]:
    """Returns `x` with rotary positions: features i and i + C/2 are turned together.

    Reference: RoFormer, arXiv:2104.09864 (the half-split layout that Llama and Qwen weights use).
    """
    half = x.shape[-1] // 2
    cos, sin = (jnp.expand_dims(part, tuple(range(3, x.ndim - 1))) for part in turn)
    low, high = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1).astype(x.dtype)

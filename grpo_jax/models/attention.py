"""One attention over two segments of keys and values: the shared prompt and the own completion.

Axes: P prompts (or cells of several), G completions (or rows of several), Q queries, K key/value heads, R queries per
key/value head, C head width, S tokens of the shared segment, U tokens of the own segment.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = -1e30
"""Score of a hidden key. Finite, so that a segment without any key still has a maximum."""


class Shared(NamedTuple):
    """Keys and values of the prompts, one copy for all completions of a prompt."""

    key: Float[Array, "P K S C"]
    value: Float[Array, "P K S C"]
    mask: Bool[Array, "P #G #Q S"]
    """Keys that a query sees; one row for all queries where they see the same."""


class Own(NamedTuple):
    """Keys and values of each completion. Keys hold `[C, U]`, the order in which decoding multiplies them."""

    key: Float[Array, "P K G C U"]
    value: Float[Array, "P K G U C"]
    mask: Bool[Array, "#P #G Q U"]


def attend(
    query: Float[Array, "P G Q K R C"],
    shared: Shared | None,
    own: Own,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> Float[Array, "P G Q K R C"]:
    """Returns attention of every query over its prompt's keys and its own, under one softmax.

        out_q = (sum_s e_qs v_s + sum_u e_qu v_u) / (sum_s e_qs + sum_u e_qu),   e = exp(scale q.k - max)

    With a `cap`, `cap tanh(scale q.k / cap)` stands in place of `scale q.k` (Gemma 2, arXiv:2408.00118).

    Nothing is repeated along G: the scores against a prompt are one product of its G x Q x R queries with its keys.
    Inside, key/value heads stand before completions, so that every product finds its rows together.

    Gradient: exact, through both segments. The maximum cancels in the quotient and is detached.

    Args:
      scale: of the scores; `1 / sqrt(C)` unless given.
      cap: bound on the size of a score; None leaves them as they are.
    """
    query = jnp.moveaxis(query * (query.shape[-1] ** -0.5 if scale is None else scale), 3, 1)
    score = soft_cap(_product("pkgqrc,pkgcu->pkgqru", query, own.key), cap)
    score = jnp.where(own.mask[:, None, :, :, None], score, MASKED)
    top = jax.lax.stop_gradient(score.max(-1, keepdims=True))
    if shared is None:
        weight = jnp.exp(score - top)
        total = weight.sum(-1, keepdims=True)
        out = _product("pkgqru,pkguc->pkgqrc", weight.astype(query.dtype), own.value)
    else:
        shared_score = soft_cap(_product("pkgqrc,pksc->pkgqrs", query, shared.key), cap)
        shared_score = jnp.where(shared.mask[:, None, :, :, None], shared_score, MASKED)
        top = jnp.maximum(top, jax.lax.stop_gradient(shared_score.max(-1, keepdims=True)))
        weight, shared_weight = jnp.exp(score - top), jnp.exp(shared_score - top)
        total = weight.sum(-1, keepdims=True) + shared_weight.sum(-1, keepdims=True)
        out = _product("pkgqru,pkguc->pkgqrc", weight.astype(query.dtype), own.value)
        out += _product("pkgqrs,pksc->pkgqrc", shared_weight.astype(query.dtype), shared.value)
    return jnp.moveaxis((out / total).astype(query.dtype), 1, 3)


def _product(axes: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(axes, left, right, preferred_element_type=jnp.float32)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """Returns `cap * tanh(x / cap)`, or `x` itself without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)

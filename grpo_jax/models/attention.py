"""One attention over two segments of keys and values: the shared prompt and the own completion.

Scores exist for one block of queries and one of keys at a time, and are computed again for the gradient
(FlashAttention, arXiv:2205.14135). A block in which no query sees a key is left out: the later ones of a causal mask,
and those of other completions where several share a row.

Axes: P prompts (or cells of several), G completions (or rows of several), Q queries, K key/value heads, R queries per
key/value head, C head width, S tokens of the shared segment, U tokens of the own segment (below also of either).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.models.blocks import blocks, over, padded

MASKED = -1e30
"""Score of a hidden key. Finite, so that a segment without any key still has a maximum."""


class Shared(NamedTuple):
    """Keys and values of the prompts, one copy for all completions of a prompt."""

    key: Float[Array, "P K C S"]
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
    block: int | None = None,
) -> Float[Array, "P G Q K R C"]:
    """Returns attention of every query over its prompt's keys and its own, under one softmax.

        out_q = (sum_s e_qs v_s + sum_u e_qu v_u) / (sum_s e_qs + sum_u e_qu),   e = exp(scale q.k - max)

    With a `cap`, `cap tanh(scale q.k / cap)` stands in place of `scale q.k` (Gemma 2, arXiv:2408.00118).

    Nothing is repeated along G: the scores against a prompt are one product of its G x Q x R queries with its keys.
    Inside, key/value heads stand before completions, so that every product finds its rows together.

    Gradient: exact, through both segments, in reverse mode.

    Args:
      scale: of the scores; `1 / sqrt(C)` unless given.
      cap: bound on the size of a score; None leaves them as they are.
      block: queries, and keys, whose scores are alive at once; None takes all.
    """
    query = jnp.moveaxis(query * (query.shape[-1] ** -0.5 if scale is None else scale), 3, 1)
    segments = (own,) if shared is None else (own, shared)
    # Every piece has the same length; keys that only fill it up are hidden.
    pairs = tuple((padded(s.key, block, -1), padded(s.value, block, -2)) for s in segments)
    masks = tuple(padded(s.mask, block, -1) for s in segments)
    masks = tuple(mask if mask.shape[2] == 1 else padded(mask, block, 2) for mask in masks)
    out = _attention(cap, block, padded(query, block, 3), pairs, masks)[:, :, :, : query.shape[3]]
    return jnp.moveaxis(out, 1, 3)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """Returns `cap * tanh(x / cap)`, or `x` itself without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


Pairs = tuple[tuple[jax.Array, jax.Array], ...]
"""Keys and values of the own segment, and of the shared one, which lacks the axis G."""
Masks = tuple[jax.Array, ...]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(
    cap: float | None, block: int | None, query: Float[Array, "P K G Q R C"], pairs: Pairs, masks: Masks
) -> Float[Array, "P K G Q R C"]:
    """Returns attention of queries that are scaled already."""
    return _forward(cap, block, query, pairs, masks)[0]


def _forward(
    cap: float | None, block: int | None, query: jax.Array, pairs: Pairs, masks: Masks
) -> tuple[jax.Array, Any]:
    """Returns the attention, and what the gradient needs: of scores the logarithm of each query's sum alone."""
    segments = [blocks(mask, query.shape[3], block) for mask in masks]

    def piece(_: None, i: Any) -> tuple[None, Any]:
        q = segments[0].of_queries(query, i)

        def more(state: Any, key: jax.Array, value: jax.Array, mask: jax.Array) -> Any:
            top, total, out = state
            lead = _lead(key)
            score = jnp.where(mask, soft_cap(_product(lead, "pkgqrc,{}cu->pkgqru", q, key), cap), MASKED)
            highest = jnp.maximum(top, score.max(-1, keepdims=True))
            weight, kept = jnp.exp(score - highest), jnp.exp(top - highest)
            out = out * kept + _product(lead, "pkgqru,{}uc->pkgqrc", weight.astype(q.dtype), value)
            return highest, total * kept + weight.sum(-1, keepdims=True), out

        nothing = jnp.zeros((*q.shape[:-1], 1), jnp.float32)
        state = nothing + MASKED, nothing, jnp.zeros(q.shape, jnp.float32)
        for segment, pair in zip(segments, pairs, strict=True):
            state = segment.fold(i, more, state, pair)
        top, total, out = state
        return None, ((out / total).astype(query.dtype), top + jnp.log(total))

    _, (out, norm) = over(piece, None, query.shape[3] // segments[0].queries)
    return out, (query, pairs, masks, out, norm)


def _backward(cap: float | None, block: int | None, saved: Any, g: jax.Array) -> tuple[jax.Array, Pairs, None]:
    """Returns the cotangents of queries, keys and values, with p = exp(score - norm) and ds = p (g.v - g.out).

    dq = ds k,      dk = ds^T q,      dv = p^T g;      with a cap, ds has one more factor, 1 - (score / cap)^2.

    The narrow factor of a product is transposed, never the scores, which are large and lie row by row.
    """
    query, pairs, masks, out, norm = saved
    segments = [blocks(mask, query.shape[3], block) for mask in masks]
    along = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True)

    def piece(sums: Any, i: Any) -> tuple[Any, jax.Array]:
        q, g_i, norm_i, along_i = (segments[0].of_queries(x, i) for x in (query, g, norm, along))

        def more(d_query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> Any:
            lead = _lead(key)
            score = soft_cap(_product(lead, "pkgqrc,{}cu->pkgqru", q, key), cap)
            weight = jnp.exp(jnp.where(mask, score, MASKED) - norm_i)
            d_score = weight * (_product(lead, "pkgqrc,{}uc->pkgqru", g_i, value) - along_i)
            if cap is not None:
                d_score *= 1 - jnp.square(score / cap)
            weight, d_score = weight.astype(q.dtype), d_score.astype(q.dtype)
            d_key = _product(lead, "pkgqrc,pkgqru->{}cu", q, d_score)
            d_value = _product(lead, "pkgqrc,pkgqru->{}cu", g_i, weight)
            return d_query + _product(lead, "pkgqru,{}cu->pkgqrc", d_score, key), (d_key, d_value)

        d_query, done = jnp.zeros(q.shape, jnp.float32), []
        for segment, pair, total in zip(segments, pairs, sums, strict=True):
            d_query, total = segment.fold(i, more, d_query, pair, total)
            done.append(total)
        return tuple(done), d_query.astype(query.dtype)

    zeros = tuple((jnp.zeros(key.shape, jnp.float32),) * 2 for key, _ in pairs)
    sums, d_query = over(piece, zeros, query.shape[3] // segments[0].queries)
    # Behind a barrier, or XLA makes the swap of axes part of the product, by transposing the scores after all.
    sums = jax.lax.optimization_barrier(jax.tree.map(lambda d: d.astype(query.dtype), sums))
    return d_query, tuple((d_key, d_value.swapaxes(-1, -2)) for d_key, d_value in sums), None


_attention.defvjp(_forward, _backward)


def _lead(keys: jax.Array) -> str:
    """Returns the first axes of a segment's keys or values: with completions, or without."""
    return "pkg" if keys.ndim == 5 else "pk"


def _product(lead: str, axes: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(axes.format(lead), left, right, preferred_element_type=jnp.float32)

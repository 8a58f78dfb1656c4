"""A decoder as pure functions of (config, params): initial parameters, training forward, prefill and decoding.

`params` is a plain nested dict; the layers' parameters are stacked along axis 0. Flax NNX describes the modules and
stays inside this folder.

The completion's own segment begins with the *last prompt token*: its T inputs are that token and the first T-1
completion tokens, so the T hidden states are exactly those that predict the T completion tokens. The prompt's
segment holds the tokens before it. A decoding loop therefore needs no first step of its own.

Axes: P cells (in a rollout: prompts), N prompts of a cell, G rows of a cell (in a rollout: completions of a prompt).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from grpo_jax.mesh.rules import constrain
from grpo_jax.models.adapters import adapted, keep_no_weights
from grpo_jax.models.attention import Own, Shared, attend, soft_cap
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.context import (
    AttentionContext,
    before_last,
    decoding_contexts,
    of_layer,
    prompt_contexts,
    row_contexts,
)
from grpo_jax.models.layers import Block, Decoder, FusedBlock, rms_norm
from grpo_jax.models.rows import Rows
from grpo_jax.types import PromptBatch

Params = dict[str, Any]
Cache = tuple[tuple[jax.Array, jax.Array], ...]
"""Keys `[P, K, G, C, U]` and values `[P, K, G, U, C]` of each layer's own segment."""

STREAM = ("prompt", "sample", None, None)
"""Logical axes of the residual stream `[P, G, T, D]`."""


@functools.cache
def _definition(build: Any, config: DecoderConfig) -> tuple[Any, Any]:
    """Returns the static definition of a module and its abstract state."""
    return nnx.split(nnx.eval_shape(lambda: build(config, jax.random.key(0))))


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _is_axes(leaf: Any) -> bool:
    return isinstance(leaf, tuple)


def _block(build: type[Block], config: DecoderConfig, params: Params) -> Block:
    """Returns the NNX block that holds these arrays."""
    definition, abstract = _definition(build, config)
    filled = jax.tree.map(lambda var, value: var.replace(value), abstract, nnx.State(params), is_leaf=_is_variable)
    return nnx.merge(definition, filled)


def init(config: DecoderConfig, key: jax.Array) -> Params:
    """Returns float32 parameters, a function of `key` alone."""
    outer, inner = jax.random.split(key)
    params = nnx.to_pure_dict(nnx.state(Decoder(config, outer)))

    def one_layer(key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.state(Block(config, key)))

    params["layers"] = jax.vmap(one_layer)(jax.random.split(inner, config.layers))
    return params


def logical_axes(config: DecoderConfig) -> Params:
    """Returns the tree of logical axis names, one tuple per parameter of `init`."""
    axes = _metadata(config, "axes")
    stacked = jax.tree.map(lambda names: ("layers", *names), axes["layers"], is_leaf=_is_axes)
    return {**axes, "layers": stacked}


def weight_kinds(config: DecoderConfig) -> Params:
    """Returns the tree of kinds, one per parameter of `init`: 'matrix', 'bias', or 'norm' for the scale of a norm."""
    return _metadata(config, "kind")


def _metadata(config: DecoderConfig, name: str) -> Params:
    """Returns what every parameter declares of itself."""
    _, abstract = _definition(Decoder, config)
    return nnx.to_pure_dict(jax.tree.map(lambda var: var.get_metadata()[name], abstract, is_leaf=_is_variable))


def head(config: DecoderConfig, params: Params) -> Float[Array, "D V"]:
    """Returns the output matrix in compute dtype: the head, or the transposed embedding of a tied model."""
    return (params["head"] if "head" in params else params["embed"].T).astype(config.dtype)


def cast_params(config: DecoderConfig, params: Params) -> Params:
    """Returns the parameters in the dtype in which they are used: `config.dtype`, and float32 for the scales of norms.

    A model that is not trained (rollout, reference, the base of adapters) computes the same with these.
    """

    def leaf(path: tuple[Any, ...], value: jax.Array) -> jax.Array:
        return value if path[-1].key == "scale" else value.astype(config.dtype)

    return jax.tree_util.tree_map_with_path(leaf, params)


def _embed(config: DecoderConfig, params: Params, tokens: jax.Array) -> jax.Array:
    # Rounded behind the lookup: a token's gradient is a sum over its places, which bfloat16 would not add up.
    x = params["embed"][tokens].astype(config.dtype)
    # The factor is rounded to the compute dtype, as it was when these models were trained.
    return x * jnp.asarray(config.hidden**0.5, config.dtype) if config.scaled_embed else x


def _final_norm(config: DecoderConfig, params: Params, x: jax.Array) -> jax.Array:
    return rms_norm(x, params["norm"]["scale"], eps=config.norm_eps, zero_centred=config.zero_centred)


def _attend(config: DecoderConfig, query: jax.Array, shared: Shared | None, own: Own) -> jax.Array:
    # One query has no block to leave out.
    block = config.attention_block if query.shape[2] > 1 else None
    return attend(query, shared, own, scale=config.score_scale, cap=config.attention_cap, block=block)


def last_token(prompt: PromptBatch) -> Int[Array, "P"]:
    """Returns the last token of every prompt."""
    return jnp.take_along_axis(prompt.tokens, prompt.mask.sum(-1, keepdims=True) - 1, axis=-1)[:, 0]


def _own(key: jax.Array, value: jax.Array, mask: jax.Array) -> Own:
    """Returns a segment of the layouts that attention multiplies from keys and values `[P, G, U, K, C]`."""
    return Own(jnp.einsum("pgukc->pkgcu", key), jnp.einsum("pgukc->pkguc", value), mask)


def _prompt_layer(
    config: DecoderConfig, block: Block, x: jax.Array, context: AttentionContext
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the prompts' stream `[P, N, S, D]` after a layer, and keys `[P, K, C, N * S]` and values of all."""
    q, k, v = block.project(x, context.rope)
    x = block.finish(x, _attend(config, q, None, _own(k, v, context.own_mask)))
    k, v = (part.reshape(len(part), -1, *part.shape[3:]) for part in (k, v))
    return x, jnp.einsum("pskc->pkcs", k), jnp.einsum("pskc->pksc", v)


def hidden_states(config: DecoderConfig, params: Params, rows: Rows) -> Float[Array, "P G U D"]:
    """Returns the final hidden state that predicts each token of the rows.

    Prompts are computed once for all that follows them in their cell. Layers are scanned over their stacked parameters,
    and where they differ in kind over that. Padding may follow the completions freely: attention is causal.

    Where `params` has adapters (`models.lora`), each layer's are added to its weights inside the scan: the sums of one
    layer are alive at a time, in the backward pass too.

    Gradient: exact, also through the prompts' keys and values.
    """
    in_prompt, in_rows = prompt_contexts(config, rows.prompt), row_contexts(config, rows)
    mixed, rules = len(set(config.local)) > 1, config.rules

    def layer(streams: tuple[jax.Array, jax.Array], this: tuple[Params, Params | None, Any]) -> tuple[Any, None]:
        prompt_x, x = streams
        layer_params, adapters, local = this
        local = local if mixed else config.is_local(0)
        block, context = _block(Block, config, adapted(layer_params, adapters)), of_layer(in_rows, local)
        prompt_x, *segment = _prompt_layer(config, block, prompt_x, of_layer(in_prompt, local))
        q, k, v = block.project(x, context.rope)
        shared = Shared(*segment, context.prompt_mask)
        x = block.finish(x, _attend(config, q, shared, _own(k, v, context.own_mask)))
        return (constrain(rules, prompt_x, "prompt"), constrain(rules, x, *STREAM)), None

    every = params["layers"], params.get("adapters"), jnp.array(config.local) if mixed else None
    policies = [jax.checkpoint_policies.dots_with_no_batch_dims_saveable] if config.remat == "dots" else []
    policies += [keep_no_weights(*every[:2])] if every[1] is not None else []
    if config.remat == "layer":
        layer = jax.checkpoint(layer, prevent_cse=False)
    elif policies:
        layer = jax.checkpoint(layer, prevent_cse=False, policy=_all_of(policies))
    prompt_x = constrain(rules, _embed(config, params, rows.prompt.tokens), "prompt")
    x = constrain(rules, _embed(config, params, rows.inputs), *STREAM)
    (_, x), _ = jax.lax.scan(layer, (prompt_x, x), every, unroll=config.unroll)
    return _final_norm(config, params, x)


def _all_of(policies: list[Callable[..., bool]]) -> Callable[..., bool]:
    """Returns the rematerialisation policy that keeps what all of these keep."""

    def kept(*primitive: Any, **how: Any) -> bool:
        return all(policy(*primitive, **how) for policy in policies)

    return kept


def prefill(config: DecoderConfig, published: Params, prompt: PromptBatch) -> tuple[Shared, ...]:
    """Returns each layer's keys and values of the prompts, from weights in the rollout layout."""
    x = constrain(config.rules, _embed(config, published, prompt.tokens)[:, None], "prompt")
    segments, seen = [], before_last(prompt)
    contexts = prompt_contexts(config, jax.tree.map(lambda x: x[:, None], prompt))
    for i, layer_params in enumerate(published["layers"]):
        block = _block(FusedBlock, config, layer_params)
        x, key, value = _prompt_layer(config, block, x, of_layer(contexts, config.is_local(i)))
        segments.append(Shared(key, value, seen))
    return tuple(segments)


def empty_cache(config: DecoderConfig, prompts: int, group: int, length: int) -> Cache:
    """Returns zeroed keys and values of the own segments, one pair per layer."""

    def layer() -> tuple[jax.Array, jax.Array]:
        key = jnp.zeros((prompts, config.kv_heads, group, config.head_width, length), config.dtype)
        return constrain_cache(config, key, jnp.zeros_like(key).swapaxes(-1, -2))

    # Not one array many times: a caller may donate them.
    return tuple(layer() for _ in range(config.layers))


def constrain_cache(config: DecoderConfig, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns keys and values of a layer, laid out on the mesh in force."""
    axes = ("prompt", "kv_heads", "sample")
    return constrain(config.rules, key, *axes), constrain(config.rules, value, *axes)


def decode(
    config: DecoderConfig,
    published: Params,
    prompt: PromptBatch,
    segments: tuple[Shared, ...],
    cache: Cache,
    tokens: Int[Array, "P G"],
    cursor: Int[Array, ""],
    start: Int[Array, "P G"] | None = None,
) -> tuple[Float[Array, "P G V"], Cache]:
    """Returns float32 logits of the next token of every completion, and the cache with this one written.

    All rows write at one cursor, so the write is one slice and stays in place.

    Args:
      published: weights in the rollout layout (see `publish`).
      tokens: the input at `cursor`: the last prompt token at its `start`, then the tokens drawn.
      start: where each completion begins in its own segment; None is 0.
    """
    cursor, length = jnp.asarray(cursor), cache[0][0].shape[-1]
    contexts = decoding_contexts(config, prompt, cursor, start, length)
    x = constrain(config.rules, _embed(config, published, tokens[..., None]), *STREAM)
    written = []
    for i, (layer_params, shared, (keys, values)) in enumerate(zip(published["layers"], segments, cache, strict=True)):
        block, context = _block(FusedBlock, config, layer_params), of_layer(contexts, config.is_local(i))
        q, k, v = block.project(x, context.rope)
        own = _own(k, v, context.own_mask)
        keys = jax.lax.dynamic_update_slice_in_dim(keys, own.key, cursor, 4)
        values = jax.lax.dynamic_update_slice_in_dim(values, own.value, cursor, 3)
        # Where a window moves over the prompt; elsewhere the stored mask holds at every step.
        moving = context.prompt_mask is not contexts[0].prompt_mask
        shared = shared._replace(mask=context.prompt_mask) if moving else shared
        x = block.finish(x, _attend(config, q, shared, Own(keys, values, context.own_mask)))
        written.append((keys, values))
    x = _final_norm(config, published, x)[..., 0, :]
    logits = jnp.einsum("pgd,dv->pgv", x, head(config, published), preferred_element_type=jnp.float32)
    return soft_cap(logits, config.final_cap), tuple(written)

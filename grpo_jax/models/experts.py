"""A layer of experts: a router sends every token through a few of many gated MLPs.

Tokens are copied once per expert that they go to and sorted by expert, so that each expert multiplies one run of
rows (`jax.lax.ragged_dot`). No token is dropped and no expert has a capacity: a token's result depends on no other.

Axes: N tokens, E experts, k experts of a token, D width of the model, M width of an expert.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.gates import GATES
from grpo_jax.models.weight import weight


def route(
    x: Float[Array, "N D"], router: Float[Array, "D E"], *, top_k: int, normalised: bool
) -> tuple[Float[Array, "N k"], Int[Array, "N k"]]:
    """Returns each token's experts and their weights: the largest of softmax(x router), in float32.

    Gradient: through the weights of the experts that were chosen; which ones they are is a constant.

    Args:
      top_k: k.
      normalised: the weights of a token are divided by their sum.
    """
    probability = jax.nn.softmax(jnp.matmul(x, router, preferred_element_type=jnp.float32))
    weights, experts = jax.lax.top_k(probability, top_k)
    if normalised:
        weights = weights / weights.sum(-1, keepdims=True)
    return weights, experts


class Experts(nnx.Module):
    """The router and the two inner projections of every expert, one array each."""

    def __init__(self, config: DecoderConfig, key: jax.Array) -> None:
        c, keys = config, jax.random.split(key, 3)
        self.config = c
        self.router = weight(keys[0], (c.hidden, c.experts), ("embed", None), fan_in=c.hidden)
        self._inner(keys[1], keys[2])

    def _inner(self, key: jax.Array, other: jax.Array) -> None:
        c = self.config
        shape, axes = (c.experts, c.hidden, c.mlp), ("expert", "embed", None)
        self.gate = weight(key, shape, axes, fan_in=c.hidden)
        self.up = weight(other, shape, axes, fan_in=c.hidden)

    def _gate_up(self, rows: jax.Array, sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
        gate, up = (part[...].astype(rows.dtype) for part in (self.gate, self.up))
        return jax.lax.ragged_dot(rows, gate, sizes), jax.lax.ragged_dot(rows, up, sizes)

    def __call__(self, x: Float[Array, "*b D"], down: Float[Array, "E M D"]) -> Float[Array, "*b D"]:
        """Returns the weighted sum of what each token's experts make of it."""
        c, tokens = self.config, x.reshape(-1, x.shape[-1])
        weights, experts = route(
            tokens, self.router[...].astype(x.dtype), top_k=c.experts_per_token, normalised=c.normalised_routing
        )
        order = jnp.argsort(experts.reshape(-1))
        sizes = jnp.bincount(experts.reshape(-1), length=c.experts)
        gate, up = self._gate_up(tokens[order // c.experts_per_token], sizes)
        rows = jax.lax.ragged_dot(GATES[c.activation](gate, up), down, sizes)
        rows = jnp.zeros_like(rows).at[order].set(rows, unique_indices=True)
        rows = rows.reshape(*weights.shape, -1)
        return jnp.einsum("nk,nkd->nd", weights.astype(x.dtype), rows).reshape(x.shape)


class FusedExperts(Experts):
    """The same with both inner projections of an expert in one matrix."""

    def _inner(self, key: jax.Array, other: jax.Array) -> None:
        c = self.config
        shape = (c.experts, c.hidden, 2, c.mlp)
        self.gate_up = weight(key, shape, ("expert", "embed", None, None), fan_in=c.hidden)

    def _gate_up(self, rows: jax.Array, sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
        both = self.gate_up[...].astype(rows.dtype)
        flat = jax.lax.ragged_dot(rows, both.reshape(*both.shape[:2], -1), sizes)
        return flat[:, : both.shape[-1]], flat[:, both.shape[-1] :]

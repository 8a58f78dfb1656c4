"""The block of a decoder as Flax NNX modules, in two layouts of the same weights.

`Block` holds one matrix per projection, as checkpoints do; training uses it. `FusedBlock` holds query, key and value
in one matrix and gate and up in another: decoding multiplies few rows at a time, and pays per product.
Every parameter bears its logical axes and its kind.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.experts import Experts, FusedExperts
from grpo_jax.models.gates import GATES
from grpo_jax.models.rotary import Rope, rotate
from grpo_jax.models.weight import bias, weight


def rms_norm(x: jax.Array, scale: jax.Array, *, eps: float, zero_centred: bool = False) -> jax.Array:
    """Returns x / sqrt(mean(x^2) + eps) * scale, computed in float32 (arXiv:1910.07467).

    A zero-centred scale is stored as its difference from 1.
    """
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + eps)
    return (wide * (1 + scale.astype(jnp.float32) if zero_centred else scale)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """`rms_norm` with its scale, which changes nothing at the start."""

    def __init__(self, width: int, config: DecoderConfig) -> None:
        start = jnp.zeros if config.zero_centred else jnp.ones
        self.scale = nnx.Param(start(width), axes=(None,), kind="norm")
        self.eps, self.zero_centred = config.norm_eps, config.zero_centred

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...], eps=self.eps, zero_centred=self.zero_centred)


class Projections(nnx.Module):
    """Query, key and value heads from the residual stream, one matrix each."""

    def __init__(self, config: DecoderConfig, key: jax.Array) -> None:
        c, keys = config, jax.random.split(key, 3)
        shared = (c.hidden, c.kv_heads, c.head_width)
        self.q = weight(
            keys[0],
            (c.hidden, c.kv_heads, c.heads // c.kv_heads, c.head_width),
            ("embed", "kv_heads", None, None),
            fan_in=c.hidden,
        )
        self.k = weight(keys[1], shared, ("embed", "kv_heads", None), fan_in=c.hidden)
        self.v = weight(keys[2], shared, ("embed", "kv_heads", None), fan_in=c.hidden)
        if c.qkv_bias:
            self.q_bias = bias(self.q.shape[1:], ("kv_heads", None, None))
            self.k_bias = bias(shared[1:], ("kv_heads", None))
            self.v_bias = bias(shared[1:], ("kv_heads", None))
        self.bias = c.qkv_bias

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        q = jnp.einsum("pgqd,dkrc->pgqkrc", x, self.q[...].astype(x.dtype))
        k = jnp.einsum("pgqd,dkc->pgqkc", x, self.k[...].astype(x.dtype))
        v = jnp.einsum("pgqd,dkc->pgqkc", x, self.v[...].astype(x.dtype))
        if self.bias:
            q, k, v = (y + b[...].astype(x.dtype) for y, b in ((q, self.q_bias), (k, self.k_bias), (v, self.v_bias)))
        return q, k, v


class FusedProjections(nnx.Module):
    """The same heads from one matrix: for each key/value head its R queries, its key, its value."""

    def __init__(self, config: DecoderConfig, key: jax.Array) -> None:
        c = config
        shape = (c.hidden, c.kv_heads, c.heads // c.kv_heads + 2, c.head_width)
        self.qkv = weight(key, shape, ("embed", "kv_heads", None, None), fan_in=c.hidden)
        if c.qkv_bias:
            self.qkv_bias = bias(shape[1:], ("kv_heads", None, None))
        self.bias = c.qkv_bias

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        heads = jnp.einsum("pgqd,dknc->pgqknc", x, self.qkv[...].astype(x.dtype))
        if self.bias:
            heads = heads + self.qkv_bias[...].astype(x.dtype)
        return heads[..., :-2, :], heads[..., -2, :], heads[..., -1, :]


class GateUp(nnx.Module):
    """The two inner projections of the gated MLP, one matrix each."""

    def __init__(self, config: DecoderConfig, key: jax.Array) -> None:
        keys = jax.random.split(key)
        shape, axes = (config.hidden, config.mlp), ("embed", "mlp")
        self.gate = weight(keys[0], shape, axes, fan_in=config.hidden)
        self.up = weight(keys[1], shape, axes, fan_in=config.hidden)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x @ self.gate[...].astype(x.dtype), x @ self.up[...].astype(x.dtype)


class FusedGateUp(nnx.Module):
    """Both inner projections of the gated MLP from one matrix."""

    def __init__(self, config: DecoderConfig, key: jax.Array) -> None:
        shape = (config.hidden, 2, config.mlp)
        self.gate_up = weight(key, shape, ("embed", None, "mlp"), fan_in=config.hidden)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        both = jnp.einsum("pgqd,dnm->pgqnm", x, self.gate_up[...].astype(x.dtype))
        return both[..., 0, :], both[..., 1, :]


class Block(nnx.Module):
    """One layer of a decoder, cut where attention comes in: `project`, attend, `finish`."""

    projections, gate_up, experts = Projections, GateUp, Experts

    def __init__(self, config: DecoderConfig, key: jax.Array) -> None:
        c, keys = config, jax.random.split(key, 4)
        self.config = c
        self.attention_norm = RMSNorm(c.hidden, c)
        self.attention = self.projections(c, keys[0])
        if c.qk_norm:
            self.q_norm = RMSNorm(c.head_width, c)
            self.k_norm = RMSNorm(c.head_width, c)
        heads = (c.kv_heads, c.heads // c.kv_heads, c.head_width)
        self.out = weight(keys[1], (*heads, c.hidden), ("kv_heads", None, None, "embed"), fan_in=c.heads * c.head_width)
        if c.out_bias:
            self.out_bias = bias((c.hidden,), ("embed",))
        if c.post_norms:
            self.post_attention_norm = RMSNorm(c.hidden, c)
            self.post_mlp_norm = RMSNorm(c.hidden, c)
        self.mlp_norm = RMSNorm(c.hidden, c)
        if c.experts:
            self.mlp = self.experts(c, keys[2])
            self.down = weight(keys[3], (c.experts, c.mlp, c.hidden), ("expert", None, "embed"), fan_in=c.mlp)
        else:
            self.mlp = self.gate_up(c, keys[2])
            self.down = weight(keys[3], (c.mlp, c.hidden), ("mlp", "embed"), fan_in=c.mlp)

    def project(self, x: jax.Array, rope: Rope) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the rotated queries `[P, G, Q, K, R, C]`, and keys and values `[P, G, Q, K, C]`."""
        q, k, v = self.attention(self.attention_norm(x))
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, rope), rotate(k, rope), v

    def finish(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """Returns the residual stream after the attention's output and the MLP."""
        out = jnp.einsum("pgqkrc,krcd->pgqd", attended, self.out[...].astype(x.dtype))
        if self.config.out_bias:
            out = out + self.out_bias[...].astype(x.dtype)
        x = x + (self.post_attention_norm(out) if self.config.post_norms else out)
        out = self._mlp(self.mlp_norm(x))
        return x + (self.post_mlp_norm(out) if self.config.post_norms else out)

    def _mlp(self, x: jax.Array) -> jax.Array:
        down = self.down[...].astype(x.dtype)
        if self.config.experts:
            return self.mlp(x, down)
        gate, up = self.mlp(x)
        return GATES[self.config.activation](gate, up) @ down


class FusedBlock(Block):
    """The layer with its weights laid out for decoding."""

    projections, gate_up, experts = FusedProjections, FusedGateUp, FusedExperts


class Decoder(nnx.Module):
    """All parameters of a decoder, with one block that stands for each of its layers."""

    def __init__(self, config: DecoderConfig, key: jax.Array) -> None:
        c, keys = config, jax.random.split(key, 3)
        # 0.02 keeps the logits of a tied head near zero at the start.
        embed = jax.random.normal(keys[0], (c.vocab, c.hidden)) * 0.02
        self.embed = nnx.Param(embed, axes=("vocab", "embed"), kind="matrix")
        self.layers = Block(c, keys[1])
        self.norm = RMSNorm(c.hidden, c)
        if not c.tied:
            self.head = weight(keys[2], (c.hidden, c.vocab), ("embed", "vocab"), fan_in=c.hidden)

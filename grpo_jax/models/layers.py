"""The block of a decoder as Flax NNX modules, in two layouts of the same weights.

`Block` holds one matrix per projection, as checkpoints do; training uses it. `FusedBlock` holds query, key and value
in one matrix and gate and up in another: decoding multiplies few rows at a time, and pays per product.
Every parameter bears its logical axes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from grpo_jax.models.attention import Rotation, rotate
from grpo_jax.models.config import DecoderConfig


def weight(key: jax.Array, shape: tuple[int, ...], axes: tuple[str | None, ...], *, fan_in: int) -> nnx.Param:
    """Returns a float32 parameter drawn from N(0, 1/fan_in), with its logical axes as metadata."""
    return nnx.Param(jax.random.normal(key, shape) * fan_in**-0.5, axes=axes)


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Returns silu(gate) * up (arXiv:2002.05202).

    Gradient: the derivative of silu from the saved sigmoid. Left to itself, XLA computes the exponential again in the
    backward pass, inside the transposition that the weights' gradient reads, where it does not vectorise.
    """
    return jax.nn.silu(gate) * up


def _swiglu_forward(gate: jax.Array, up: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    sigmoid = jax.nn.sigmoid(gate)
    return gate * sigmoid * up, (gate, up, sigmoid)


def _swiglu_backward(saved: tuple[jax.Array, jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    gate, up, sigmoid = saved
    return g * up * sigmoid * (1 + gate * (1 - sigmoid)), g * gate * sigmoid


swiglu.defvjp(_swiglu_forward, _swiglu_backward)


def rms_norm(x: jax.Array, scale: jax.Array, *, eps: float) -> jax.Array:
    """Returns x / sqrt(mean(x^2) + eps) * scale, computed in float32 (arXiv:1910.07467)."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype)


class RMSNorm(nnx.Module):
    """`rms_norm` with its scale, ones at the start."""

    def __init__(self, width: int, eps: float) -> None:
        self.scale = nnx.Param(jnp.ones(width), axes=(None,))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...], eps=self.eps)


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
            self.q_bias = nnx.Param(jnp.zeros(self.q.shape[1:]), axes=("kv_heads", None, None))
            self.k_bias = nnx.Param(jnp.zeros(shared[1:]), axes=("kv_heads", None))
            self.v_bias = nnx.Param(jnp.zeros(shared[1:]), axes=("kv_heads", None))
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
            self.qkv_bias = nnx.Param(jnp.zeros(shape[1:]), axes=("kv_heads", None, None))
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

    projections, gate_up = Projections, GateUp

    def __init__(self, config: DecoderConfig, key: jax.Array) -> None:
        c, keys = config, jax.random.split(key, 4)
        self.attention_norm = RMSNorm(c.hidden, c.norm_eps)
        self.attention = self.projections(c, keys[0])
        self.qk_norm = c.qk_norm
        if c.qk_norm:
            self.q_norm = RMSNorm(c.head_width, c.norm_eps)
            self.k_norm = RMSNorm(c.head_width, c.norm_eps)
        heads = (c.kv_heads, c.heads // c.kv_heads, c.head_width)
        self.out = weight(keys[1], (*heads, c.hidden), ("kv_heads", None, None, "embed"), fan_in=c.heads * c.head_width)
        self.mlp_norm = RMSNorm(c.hidden, c.norm_eps)
        self.mlp = self.gate_up(c, keys[2])
        self.down = weight(keys[3], (c.mlp, c.hidden), ("mlp", "embed"), fan_in=c.mlp)

    def project(self, x: jax.Array, turn: Rotation) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the rotated queries `[P, G, Q, K, R, C]`, and keys and values `[P, G, Q, K, C]`."""
        q, k, v = self.attention(self.attention_norm(x))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, turn), rotate(k, turn), v

    def finish(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """Returns the residual stream after the attention's output and the MLP."""
        x = x + jnp.einsum("pgqkrc,krcd->pgqd", attended, self.out[...].astype(x.dtype))
        gate, up = self.mlp(self.mlp_norm(x))
        return x + swiglu(gate, up) @ self.down[...].astype(x.dtype)


class FusedBlock(Block):
    """The layer with its weights laid out for decoding."""

    projections, gate_up = FusedProjections, FusedGateUp


class Decoder(nnx.Module):
    """All parameters of a decoder, with one block that stands for each of its layers."""

    def __init__(self, config: DecoderConfig, key: jax.Array) -> None:
        c, keys = config, jax.random.split(key, 3)
        # 0.02 keeps the logits of a tied head near zero at the start.
        self.embed = nnx.Param(jax.random.normal(keys[0], (c.vocab, c.hidden)) * 0.02, axes=("vocab", "embed"))
        self.layers = Block(c, keys[1])
        self.norm = RMSNorm(c.hidden, c.norm_eps)
        if not c.tied:
            self.head = weight(keys[2], (c.hidden, c.vocab), ("embed", "vocab"), fan_in=c.hidden)

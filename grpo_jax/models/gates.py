"""The gates of a gated MLP."""

from __future__ import annotations

import jax


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


def geglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Returns gelu(gate) * up (arXiv:2002.05202), with the tanh form of gelu that Gemma was trained with."""
    return jax.nn.gelu(gate, approximate=True) * up


GATES = {"silu": swiglu, "gelu_tanh": geglu}
"""By the name of their activation."""

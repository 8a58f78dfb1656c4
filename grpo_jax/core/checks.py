"""Checks that run while a function is traced, and cost nothing afterwards."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def require_same_shape(name: str, x: jax.Array, like_name: str, like: jax.Array) -> None:
    """Raises ValueError unless `x` has the shape of `like`; nothing is broadcast in silence.

    >>> require_same_shape("advantage", jnp.zeros((2, 3)), "logp", jnp.zeros((2, 4)))
    Traceback (most recent call last):
    ValueError: advantage has shape (2, 3), but logp has shape (2, 4); they must be equal
    """
    if jnp.shape(x) != jnp.shape(like):
        raise ValueError(
            f"{name} has shape {jnp.shape(x)}, but {like_name} has shape {jnp.shape(like)}; they must be equal"
        )


def require_mask(name: str, mask: jax.Array, like_name: str, like: jax.Array) -> None:
    """Raises TypeError unless `mask` is boolean, and ValueError unless it has the shape of `like`.

    >>> require_mask("mask", jnp.ones(3), "logp", jnp.zeros(3))
    Traceback (most recent call last):
    TypeError: mask must be boolean (True on what counts), got dtype float32 with shape (3,); logp has shape (3,)
    """
    if jnp.result_type(mask) != jnp.bool_:
        raise TypeError(
            f"{name} must be boolean (True on what counts), got dtype {jnp.result_type(mask)} with shape "
            f"{jnp.shape(mask)}; {like_name} has shape {jnp.shape(like)}"
        )
    require_same_shape(name, mask, like_name, like)


def require_axes(name: str, x: jax.Array, axes: str) -> None:
    """Raises ValueError unless `x` has at least the axes that are listed, such as `"G K"`.

    >>> require_axes("step_reward", jnp.zeros(3), "G K")
    Traceback (most recent call last):
    ValueError: step_reward needs the trailing axes [..., G, K], got shape (3,)
    """
    if jnp.ndim(x) < len(axes.split()):
        wanted = ", ".join(["...", *axes.split()])
        raise ValueError(f"{name} needs the trailing axes [{wanted}], got shape {jnp.shape(x)}")


def require_integers(name: str, x: jax.Array) -> None:
    """Raises TypeError unless `x` holds integers.

    >>> require_integers("targets", jnp.zeros(3))
    Traceback (most recent call last):
    TypeError: targets must hold integers, got dtype float32
    """
    if not jnp.issubdtype(jnp.result_type(x), jnp.integer):
        raise TypeError(f"{name} must hold integers, got dtype {jnp.result_type(x)}")


def require_floats(name: str, x: jax.Array) -> None:
    """Raises TypeError unless `x` holds floating-point numbers.

    >>> require_floats("reward", jnp.ones((2, 3), int))
    Traceback (most recent call last):
    TypeError: reward must hold floating-point numbers, got dtype int32 with shape (2, 3); convert it with astype
    """
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        raise TypeError(
            f"{name} must hold floating-point numbers, got dtype {jnp.result_type(x)} with shape {jnp.shape(x)}; "
            "convert it with astype"
        )


def require_at_least(name: str, value: float, bound: float) -> None:
    """Raises ValueError unless a Python number is finite and `>= bound` (NaN is neither).

    >>> require_at_least("kl_coef", -0.1, 0.0)
    Traceback (most recent call last):
    ValueError: kl_coef must be a finite number >= 0.0, got -0.1
    """
    if not bound <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number >= {bound}, got {value}")


def check_tokens(log_ratio: jax.Array, logp: jax.Array, advantage: jax.Array) -> None:
    """Raises ValueError unless the three arguments of a surrogate have one shape."""
    require_same_shape("logp", logp, "log_ratio", log_ratio)
    require_same_shape("advantage", advantage, "log_ratio", log_ratio)

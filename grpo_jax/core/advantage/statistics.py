"""What the advantages share: which rewards and tokens count, and distances from a mean."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

from grpo_jax.core.checks import require_at_least, require_axes, require_floats, require_mask, require_same_shape
from grpo_jax.core.masking import as_float, masked_mean, masked_std, sanitise


def clean(
    reward: Float[Array, "*b G"], valid: Bool[Array, "*b G"], *, group: int = 1
) -> tuple[Float[Array, "*b G"], Bool[Array, "*b G"]]:
    """Returns the rewards, 0 where they do not count, and which do: those that are valid and finite.

    Args:
      group: completions that the advantage needs at least.

    Raises:
      TypeError: `reward` holds no floating-point numbers, or `valid` is not boolean.
      ValueError: the shapes differ, or the axis G is missing or shorter than `group`.

    >>> clean(jnp.array([1.0, jnp.nan, 2.0]), jnp.array([True, True, False]))
    (Array([1., 0., 0.], dtype=float32), Array([ True, False, False], dtype=bool))
    """
    require_axes("reward", reward, "G")
    require_floats("reward", reward)
    require_mask("valid", valid, "reward", reward)
    if jnp.shape(reward)[-1] < group:
        raise ValueError(
            f"reward has shape {jnp.shape(reward)}, a group of {jnp.shape(reward)[-1]}; this advantage compares at "
            f"least {group} completions of a prompt, so reward is [..., G] with G >= {group}"
        )
    valid = valid & jnp.isfinite(reward)
    return sanitise(reward, valid), valid


def scored(
    valid: Bool[Array, "*b G"], mask: Bool[Array, "*b G T"], token_reward: Float[Array, "*b G T"] | None = None
) -> Bool[Array, "*b G T"]:
    """Returns the tokens that count: those in the mask, of completions that are valid.

    A completion with a scored token whose reward is not finite is not valid as a whole.

    Raises:
      TypeError: `mask` is not boolean, or `token_reward` holds no floating-point numbers.
      ValueError: the shapes do not fit.

    >>> scored(jnp.array([True, False]), jnp.array([[True, False], [True, True]])).tolist()
    [[True, False], [False, False]]
    """
    require_axes("mask", mask, "G T")
    require_mask("mask", mask, "mask", mask)
    if jnp.shape(mask)[:-1] != jnp.shape(valid):
        raise ValueError(
            f"mask has shape {jnp.shape(mask)}, but reward has shape {jnp.shape(valid)}; reward lacks only T"
        )
    if token_reward is not None:
        require_floats("token_reward", token_reward)
        require_same_shape("token_reward", token_reward, "mask", mask)
        valid = valid & jnp.all(jnp.isfinite(token_reward) | ~mask, axis=-1)
    return mask & valid[..., None]


def centre(x: Float[Array, "*b N"], valid: Bool[Array, "*b N"]) -> Float[Array, "*b N"]:
    """Returns x - mean over the valid entries of a row, exactly 0 where all are equal and where one is not valid.

    >>> centre(jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False]))
    Array([-1.,  1.,  0.], dtype=float32)
    """
    return sanitise(x - masked_mean(x, valid)[..., None], valid & differ(x, valid)[..., None])


def standardise(x: Real[Array, "*b N"], valid: Bool[Array, "*b N"], *, ddof: int, eps: float) -> Float[Array, "*b N"]:
    """Returns (x - mean) / (std + eps) over the valid finite entries of a row, exactly 0 where all are equal.

    With `ddof` or fewer entries there is no deviation to divide by, and the row is 0 as well.

    >>> standardise(jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False]), ddof=0, eps=0.0)
    Array([-1.,  1.,  0.], dtype=float32)
    """
    valid = valid & jnp.isfinite(x)
    x = sanitise(x, valid)
    deviation = masked_std(x, valid, ddof=ddof)
    known = deviation > 0
    return sanitise(centre(x, valid) / jnp.where(known, deviation + eps, 1.0)[..., None], known[..., None])


def differ(x: Real[Array, "*b N"], valid: Bool[Array, "*b N"]) -> Bool[Array, "*b"]:
    """Returns whether the valid entries of a row differ at all, which no rounding of a mean can hide or feign.

    >>> differ(jnp.array([[0.1, 0.1, 7.0], [0.1, 0.2, 0.1]]), jnp.array([[True, True, False], [True] * 3]))
    Array([False,  True], dtype=bool)
    """
    x = as_float(x)
    highest = jnp.max(x, axis=-1, where=valid, initial=-jnp.inf)
    lowest = jnp.min(x, axis=-1, where=valid, initial=jnp.inf)
    return highest > lowest


def check_deviation(ddof: int, eps: float) -> None:
    """Raises ValueError unless a standard deviation is well described by its `ddof` and `eps`."""
    require_at_least("ddof", ddof, 0)
    require_at_least("eps", eps, 0.0)


def check_fraction(name: str, value: float) -> None:
    """Raises ValueError unless a Python number is from 0 to 1 (NaN is not).

    >>> check_fraction("gamma", 1.5)
    Traceback (most recent call last):
    ValueError: gamma must be a number from 0 to 1, got 1.5
    """
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be a number from 0 to 1, got {value}")

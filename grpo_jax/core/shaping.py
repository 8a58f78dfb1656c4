"""Rewards for the form of a completion, whatever it says: its length."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grpo_jax.core.checks import require_integers
from grpo_jax.core.masking import as_float


def soft_overlong(length: Int[Array, "*b"], *, limit: int, buffer: int) -> Float[Array, "*b"]:
    """Returns a penalty, to be added to the reward, that grows over the last tokens before the length limit.

        R = 0                                          length <= limit - buffer
        R = (limit - buffer - length) / buffer         limit - buffer < length <= limit
        R = -1                                         length > limit

    The three pieces join without a step: 0 at `limit - buffer`, -1 at `limit`.

    Args:
      length: number of tokens of each completion.
      limit: length from which the penalty is full, in tokens.
      buffer: number of tokens before it over which the penalty grows.

    Returns:
      The penalty of each completion, between -1 and 0.

    Raises:
      TypeError: `length` does not hold integers, or a bound is not an integer.
      ValueError: `buffer` is not between 1 and `limit`.

    Reference: DAPO, arXiv:2503.14476, equation 13, with L_max = limit and L_cache = buffer; it trains with a buffer
    of 4096 tokens below a limit of 20480.

    >>> soft_overlong(jnp.array([100, 16384, 18432, 20480, 30000]), limit=20480, buffer=4096).tolist()
    [0.0, 0.0, -0.5, -1.0, -1.0]
    """
    for name, value in (("limit", limit), ("buffer", buffer)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number of tokens, an integer, got {value!r}")
    if not 1 <= buffer <= limit:
        raise ValueError(f"buffer must be between 1 and limit={limit}, got {buffer}")
    require_integers("length", length)
    start = limit - buffer
    # Bounded from below before the subtraction, while exact: the difference is never negative, even if unsigned.
    over = jnp.clip(length, start, limit) - start
    return (0.0 - as_float(over)) / buffer

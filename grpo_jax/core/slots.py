"""What a component asks for beyond the arguments of its slot: its keyword-only parameters, by name.

A surrogate `(log_ratio, logp, advantage)` that also wants the mask declares it: `(log_ratio, logp, advantage, *,
mask)`. Whoever calls it reads that from the signature, so nothing is computed that no component asks for. A
keyword-only parameter with a default is a hyperparameter and is never filled in.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from grpo_jax.core.naming import show


def asks(component: Callable[..., Any] | None) -> tuple[str, ...]:
    """Returns the names that a component asks for; nothing for None.

    >>> def surrogate(log_ratio, logp, advantage, *, mask, eps=0.2): ...
    >>> asks(surrogate)
    ('mask',)
    """
    if component is None:
        return ()
    return tuple(
        name
        for name, parameter in inspect.signature(component).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    )


def fill(slot: str, component: Callable[..., Any], available: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments that a component asks for.

    Raises:
      ValueError: one of them is not available here, or None.

    >>> def kl(logp, ref_logp, *, log_ratio): ...
    >>> fill("kl", kl, {"log_ratio": 0.5, "mask": None})
    {'log_ratio': 0.5}
    >>> fill("kl", kl, {"mask": True, "log_ratio": None})
    Traceback (most recent call last):
    ValueError: kl=kl asks for log_ratio, which is not given here; there is mask
    """
    asked = asks(component)
    given = [name for name, value in available.items() if value is not None]
    missing = [name for name in asked if name not in given]
    if missing:
        raise ValueError(
            f"{slot}={show(component)} asks for {', '.join(missing)}, which is not given here; "
            f"there is {', '.join(given) or 'nothing'}"
        )
    return {name: available[name] for name in asked}

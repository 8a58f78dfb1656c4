"""A batch cut along its prompts, so that only a part of it has activations at a time."""

from __future__ import annotations

from typing import Any

import jax


def split(tree: Any, parts: int) -> Any:
    """Returns leaves `[P, ...]` as `[parts, P / parts, ...]`; part i holds prompts i, i + parts, i + 2 parts, ...

    Strided, so that every part is spread over the devices as the whole is.
    """
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), tree)


def join(tree: Any) -> Any:
    """Returns the inverse of `split`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)

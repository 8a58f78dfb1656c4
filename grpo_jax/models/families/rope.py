"""Rotary positions in config.json, in its two styles.

The older one has `rope_theta` and `rope_scaling` beside the other fields, the newer one dict `rope_parameters` for
both; models with two kinds of layers hold one such dict for each kind. Both are read, and both are written, because
a reader of one style takes a default where it finds the other.
"""

from __future__ import annotations

import math
from typing import Any

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.families.fields import Fields
from grpo_jax.models.rotary import Linear, Llama3, Scaling, Yarn

GLOBAL, LOCAL = "full_attention", "sliding_attention"

KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "beta_fast",
        "beta_slow",
        "truncate",
    ),
}
"""The fields of each `rope_type` that is supported."""


def read_rope(f: Fields, *, theta: float = 10_000.0) -> dict[str, Any]:
    """Returns `rope_theta` and `rope_scaling` of a model whose layers all turn alike."""
    return _global(f, "rope_parameters", f.get("rope_parameters") or {}, theta)


def read_two_ropes(f: Fields, *, theta: float, local_theta: float) -> dict[str, Any]:
    """Returns the rotation of global and of local layers, each with its own base."""
    nested = f.get("rope_parameters") or {}
    unknown = sorted(set(nested) - {GLOBAL, LOCAL})
    if unknown:
        raise f.error(f"rope_parameters.{unknown[0]}", f"is not supported; expected {GLOBAL} and {LOCAL}")
    local = nested.get(LOCAL) or {}
    if _parse(f, f"rope_parameters.{LOCAL}", local) is not None:
        raise f.error(f"rope_parameters.{LOCAL}", f"is {local!r}; scaling is supported on {GLOBAL} alone")
    flat = f.get("rope_local_base_freq")
    local_base = _agree(f, "rope_local_base_freq", flat, local.get("rope_theta"), local_theta)
    spread = _global(f, f"rope_parameters.{GLOBAL}", nested.get(GLOBAL) or {}, theta)
    return {**spread, "local_rope_theta": float(local_base)}


def write_rope(config: DecoderConfig) -> dict[str, Any]:
    """Returns the fields that `read_rope` reads, in both styles."""
    scaling = _fields(config.rope_scaling)
    parameters = {"rope_type": "default", **(scaling or {}), "rope_theta": config.rope_theta}
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling, "rope_parameters": parameters}


def write_two_ropes(config: DecoderConfig) -> dict[str, Any]:
    """Returns the fields that `read_two_ropes` reads, in both styles."""
    both = write_rope(config)
    local = {"rope_type": "default", "rope_theta": config.local_rope_theta}
    nested = {GLOBAL: both["rope_parameters"], LOCAL: local}
    return {**both, "rope_local_base_freq": config.local_rope_theta, "rope_parameters": nested}


def _global(f: Fields, at: str, new: dict[str, Any], default: float) -> dict[str, Any]:
    """Returns base and scaling from the old fields and the new ones, which have to agree where both are given."""
    old = f.get("rope_scaling") or {}
    theta = _agree(f, "rope_theta", f.get("rope_theta"), old.get("rope_theta"), new.get("rope_theta"), default)
    if not isinstance(theta, int | float) or theta <= 1:
        raise f.error("rope_theta", f"is {theta!r}; expected a number above 1")
    scaling = _parse(f, at, new)
    if old:
        other = _parse(f, "rope_scaling", old)
        if new and other != scaling:
            raise f.error("rope_scaling", f"says {other}, but {at} says {scaling}; make them agree")
        scaling = other
    return {"rope_theta": float(theta), "rope_scaling": scaling}


def _agree(f: Fields, name: str, *values: Any) -> Any:
    """Returns the first value that is given; the last one is the default, the others have to be equal."""
    given = [value for value in values[:-1] if value is not None]
    if any(value != given[0] for value in given):
        raise f.error(name, f"has two values, {given[0]} and {given[-1]}, in two places; make them agree")
    return given[0] if given else values[-1]


def _parse(f: Fields, at: str, raw: dict[str, Any]) -> Scaling | None:
    """Returns the scaling that a dict of either style describes."""
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind not in KEYS:
        raise f.error(f"{at}.rope_type", f"is {kind!r}, which is not supported; supported are {', '.join(KEYS)}")
    if raw.get("partial_rotary_factor") not in (None, 1.0):
        raise f.error(f"{at}.partial_rotary_factor", f"is {raw['partial_rotary_factor']}; only 1 is supported")
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *KEYS[kind]}
    unknown = sorted(set(raw) - known)
    if unknown:
        raise f.error(f"{at}.{unknown[0]}", f"is no field of rope_type {kind!r}")
    if kind == "default":
        return None
    values = {name: raw.get(name) for name in KEYS[kind]}
    if "original_max_position_embeddings" in values:
        first = values["original_max_position_embeddings"] or f.positive("max_position_embeddings")
        values["original_max_position_embeddings"] = first
    optional = () if kind != "yarn" else KEYS["yarn"][2:]
    missing = [name for name in KEYS[kind] if values[name] is None and name not in optional]
    if missing:
        raise f.error(f"{at}.{missing[0]}", f"is missing; rope_type {kind!r} needs it")
    return {"linear": _linear, "llama3": _llama3, "yarn": _yarn}[kind](values)


def _linear(values: dict[str, Any]) -> Linear:
    return Linear(factor=float(values["factor"]))


def _llama3(values: dict[str, Any]) -> Llama3:
    factor, low, high, original = (values[name] for name in KEYS["llama3"])
    return Llama3(factor=float(factor), low=float(low), high=float(high), original=original)


def _yarn(values: dict[str, Any]) -> Yarn:
    factor, original, magnitude, top, bottom, fast, slow, whole = (values[name] for name in KEYS["yarn"])
    if magnitude is None:
        magnitude = _lengthened(factor, top) / _lengthened(factor, bottom) if top and bottom else _lengthened(factor, 1)
    return Yarn(
        factor=float(factor),
        original=original,
        magnitude=float(magnitude),
        fast=float(fast or 32),
        slow=float(slow or 1),
        whole=True if whole is None else whole,
    )


def _lengthened(factor: float, weight: float) -> float:
    """Returns by what queries and keys are multiplied at this factor."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _fields(scaling: Scaling | None) -> dict[str, Any] | None:
    """Returns the dict that `_parse` reads; None without scaling."""
    match scaling:
        case None:
            return None
        case Linear():
            values = (scaling.factor,)
        case Llama3():
            values = (scaling.factor, scaling.low, scaling.high, scaling.original)
        case Yarn():
            values = (scaling.factor, scaling.original, scaling.magnitude, None, None, scaling.fast, scaling.slow)
            values = (*values, scaling.whole)
    kind = type(scaling).__name__.lower()
    named = dict(zip(KEYS[kind], values, strict=True))
    return {"rope_type": kind} | {name: value for name, value in named.items() if value is not None}

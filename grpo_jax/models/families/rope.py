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
from grpo_jax.models.rope_scaling import Linear, Llama3, Scaling, Yarn

GLOBAL, LOCAL = "full_attention", "sliding_attention"
ORIGINAL = "original_max_position_embeddings"

KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
    "yarn": (
        "factor",
        ORIGINAL,
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
    """Returns `rope_theta` and `rope_scaling` of a model whose layers all rotate alike."""
    return _global(f, f.inner("rope_parameters"), theta)


def read_two_ropes(f: Fields, *, theta: float, local_theta: float) -> dict[str, Any]:
    """Returns the rope of global and of local layers, each with its own base."""
    nested = f.inner("rope_parameters")
    unknown = sorted(set(nested.raw) - {GLOBAL, LOCAL})
    if unknown:
        raise nested.error(unknown[0], f"is not supported; expected {GLOBAL} and {LOCAL}")
    local = nested.inner(LOCAL)
    if _parse(f, local) is not None:
        raise nested.error(LOCAL, f"is {local.raw!r}; scaling is supported on {GLOBAL} alone")
    local_base = _base((f, "rope_local_base_freq"), (local, "rope_theta"), default=local_theta)
    return {**_global(f, nested.inner(GLOBAL), theta), "local_rope_theta": local_base}


def write_rope(config: DecoderConfig) -> dict[str, Any]:
    """Returns the fields that `read_rope` reads, in both styles."""
    scaling = _fields(config.rope_scaling)
    parameters = {"rope_type": "default", **(scaling or {}), "rope_theta": config.rope_theta}
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling, "rope_parameters": parameters}


def write_two_ropes(config: DecoderConfig) -> dict[str, Any]:
    """Returns the fields that `read_two_ropes` reads, in both styles."""
    both = write_rope(config)
    base = 10_000.0 if config.local_rope_theta is None else config.local_rope_theta  # no layer need be local
    nested = {GLOBAL: both["rope_parameters"], LOCAL: {"rope_type": "default", "rope_theta": base}}
    return {**both, "rope_local_base_freq": base, "rope_parameters": nested}


def _global(f: Fields, new: Fields, default: float) -> dict[str, Any]:
    """Returns base and scaling from the old fields and the new ones, which have to agree where both are given."""
    old = f.inner("rope_scaling")
    theta = _base((f, "rope_theta"), (old, "rope_theta"), (new, "rope_theta"), default=default)
    scaling = _parse(f, new)
    if old.raw:
        other = _parse(f, old)
        if new.raw and other != scaling:
            at = new.at.removesuffix(".")
            raise f.error("rope_scaling", f"says {other}, but {at} says {scaling}; make them agree")
        scaling = other
    return {"rope_theta": theta, "rope_scaling": scaling}


def _base(*places: tuple[Fields, str], default: float) -> float:
    """Returns the base of rotary frequencies, which may stand in several places and must be the same in all."""
    given = [fields.number(name, above=1) for fields, name in places if name in fields.raw]
    if len(set(given)) > 1:
        fields, name = places[0]
        raise fields.error(name, f"has two values, {given[0]} and {given[-1]}, in two places; make them agree")
    return given[0] if given else default


def _parse(f: Fields, rope: Fields) -> Scaling | None:
    """Returns the scaling that a mapping of either style describes."""
    raw = rope.raw
    kind = raw.get("rope_type", raw.get("type", "default"))
    if not isinstance(kind, str) or kind not in KEYS:
        raise rope.error("rope_type", f"is {kind!r}, which is not supported; supported are {', '.join(KEYS)}")
    if raw.get("partial_rotary_factor") not in (None, 1.0):
        raise rope.error("partial_rotary_factor", f"is {raw['partial_rotary_factor']}; only 1 is supported")
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *KEYS[kind]}
    unknown = sorted(set(raw) - known)
    if unknown:
        raise rope.error(unknown[0], f"is no field of rope_type {kind!r}")
    # The length of the first texts has another place where it may stand; yarn's last fields have defaults.
    needed = [name for name in KEYS[kind] if name != ORIGINAL] if kind != "yarn" else ["factor"]
    missing = [name for name in needed if raw.get(name) is None]
    if missing:
        raise rope.error(missing[0], f"is missing; rope_type {kind!r} needs it")
    if kind == "default":
        return None
    if kind == "linear":
        return Linear(factor=rope.number("factor"))
    original = rope.integer(ORIGINAL) if ORIGINAL in raw else f.positive("max_position_embeddings")
    return (_llama3 if kind == "llama3" else _yarn)(rope, original)


def _llama3(rope: Fields, original: int) -> Llama3:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.error("high_freq_factor", f"is {high}; expected a number above low_freq_factor ({low})")
    return Llama3(factor=rope.number("factor"), low_freq_factor=low, high_freq_factor=high, original=original)


def _yarn(rope: Fields, original: int) -> Yarn:
    factor, attention_factor = rope.number("factor"), rope.optional_number("attention_factor")
    weights = [name for name in ("mscale", "mscale_all_dim") if rope.raw.get(name) not in (None, 0)]
    lengths = [_lengthened(factor, rope.number(name)) for name in weights]
    if attention_factor is None:
        attention_factor = lengths[0] / lengths[1] if len(lengths) == 2 else _lengthened(factor, 1)
    return Yarn(
        factor=factor,
        original=original,
        attention_factor=attention_factor,
        beta_fast=rope.optional_number("beta_fast") or 32.0,
        beta_slow=rope.optional_number("beta_slow") or 1.0,
        truncate=True if rope.get("truncate") is None else rope.flag("truncate", True),
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
            values = (scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor, scaling.original)
        case Yarn():
            values = (scaling.factor, scaling.original, scaling.attention_factor, None, None)
            values = (*values, scaling.beta_fast, scaling.beta_slow, scaling.truncate)
    kind = type(scaling).__name__.lower()
    named = dict(zip(KEYS[kind], values, strict=True))
    return {"rope_type": kind} | {name: value for name, value in named.items() if value is not None}

"""Gemma 3's text model: norms on queries and keys; most layers local, with a rotary base of their own."""

from __future__ import annotations

from typing import Any

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.families import gemma2
from grpo_jax.models.families.family import Family
from grpo_jax.models.families.fields import Fields
from grpo_jax.models.families.rope import read_two_ropes, write_two_ropes


def read(raw: dict[str, Any]) -> DecoderConfig:
    """Returns the configuration that config.json describes."""
    f = Fields(raw, "gemma3_text")
    gemma2.gemma_fields(f)
    # The field exists, and transformers does not use it: whatever the model was trained with, it is not clear.
    f.fixed("attn_logit_softcapping", None)
    shape, window = f.shape(tied=True, head_width=256), f.optional_positive("sliding_window", 4096)
    # Every sixth layer is global unless the file says otherwise; some writers put an underscore before the name.
    named = [name for name in ("sliding_window_pattern", "_sliding_window_pattern") if name in raw]
    period = f.integer(named[0]) if named else 6
    windows = f.windows(window, [(i + 1) % period != 0 for i in range(shape["layers"])])
    ropes = read_two_ropes(f, theta=1e6, local_theta=1e4)
    if not windows:
        ropes.pop("local_rope_theta")
    config = DecoderConfig(
        **{**shape, **gemma2.ALWAYS, **f.biases(), **windows, **ropes},
        qk_norm=True,
        query_scalar=f.number("query_pre_attn_scalar", 256),
        final_cap=f.optional_number("final_logit_softcapping"),
    )
    f.close()
    return config


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the fields that `read` reads."""
    pattern = _pattern([config.is_local(i) for i in range(config.layers)])
    return {**gemma2.write(config), "attn_logit_softcapping": None, **pattern, **write_two_ropes(config)}


def _pattern(local: list[bool]) -> dict[str, int]:
    """Returns the period of global layers, if there is one: readers from before `layer_types` take 6 without it."""
    period = local.index(False) + 1 if False in local else len(local) + 1
    regular = local == [(i + 1) % period != 0 for i in range(len(local))]
    return {"sliding_window_pattern": period} if regular else {}


FAMILY = Family(name="gemma3_text", architecture="Gemma3ForCausalLM", read=read, fields=write)

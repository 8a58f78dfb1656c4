"""Adapters as a directory that PEFT loads: adapter_model.safetensors and adapter_config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from grpo_jax.mesh.mesh import fetch
from grpo_jax.models.adapters import TARGETS
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.lora import Adapters
from grpo_jax.models.settings import Lora
from grpo_jax.models.weights.files import FLOATS
from grpo_jax.models.weights.hub import hub_id
from grpo_jax.models.weights.write import new_directory, write_json, write_tensors

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
"""What PEFT puts before the name of a module of the model that it wraps."""


def save_adapter(
    adapters: Adapters,
    config: DecoderConfig,
    lora: Lora,
    family: Any,
    directory: str | Path,
    *,
    base: str | None = None,
    dtype: str = "float32",
) -> None:
    """Writes adapters in PEFT's format. The directory appears whole or not at all.

    A is stored `[rank, in]` and B `[out, rank]`; a stored weight `[out, in]` becomes W + (alpha / rank) B A.

    Args:
      adapters: on any mesh; every process calls this, the first one writes.
      family: gives the matrices' names (see `models.families`).
      directory: must not exist yet, or be empty.
      base: the model that was adapted, as `resolve_model` takes it; PEFT can then find it.
      dtype: of the stored factors.

    Raises:
      FileExistsError: the directory holds something.
      ValueError: experts are adapted, which PEFT has no modules for; a factor is not finite in `dtype`; or the dtype is
        not one of safetensors' floats.
    """
    if dtype not in FLOATS.values():
        raise ValueError(f"dtype: {dtype!r}; expected one of {', '.join(FLOATS.values())}")
    experts = [target for target in ("gate", "up", "down") if config.experts and target in adapters]
    if experts:
        raise ValueError(
            f"lora.targets: {', '.join(experts)} of experts, which transformers keeps in one array that is no module "
            "PEFT could adapt; merge the adapters and save the whole model"
        )
    names = family.names(config)
    modules = {target: names[f"layers.{'.'.join(TARGETS[target])}"].removesuffix(".weight") for target in adapters}
    tensors = {}
    for target, factors in fetch(adapters).items():
        for layer in range(config.layers):
            module = PREFIX + modules[target].replace("{layer}", str(layer))
            a, b = factors["a"][layer], factors["b"][layer]
            tensors[f"{module}.lora_A.weight"] = a.reshape(-1, lora.rank).T.astype(dtype)
            tensors[f"{module}.lora_B.weight"] = b.reshape(lora.rank, -1).T.astype(dtype)
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise ValueError(f"{name} holds values that are not finite in {dtype}: the adapter would be of no use")
    with new_directory(directory) as folder:
        write_json(folder, CONFIG, _config(lora, sorted(m.rpartition(".")[2] for m in modules.values()), base))
        write_tensors({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / WEIGHTS)


def _config(lora: Lora, modules: list[str], base: str | None) -> dict[str, Any]:
    """Returns adapter_config.json; PEFT's defaults stand for every field that is not in it."""
    name, revision = (base and hub_id(base)) or (base, None)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision,
        "r": lora.rank,
        # PEFT declares an integer; where alpha is one, it is written as such.
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
    }

"""A model directory, or a model of the hub, in one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from grpo_jax.data.hf_tokenizer import HfTokenizer
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Params
from grpo_jax.models.weights.hub import resolve_model
from grpo_jax.models.weights.read import check, load
from grpo_jax.models.weights.source import ModelSource, read_source


def load_model(
    path: str | Path,
    mesh: jax.sharding.Mesh | None = None,
    *,
    dtype: str = "bfloat16",
    template: str | None = None,
    system: str | None = None,
    template_options: Mapping[str, Any] | None = None,
    **changes: Any,
) -> tuple[DecoderConfig, Params, HfTokenizer]:
    """Returns a model, its float32 parameters on the mesh, and its tokenizer.

    >>> model, params, tokenizer = load_model("Qwen/Qwen2.5-0.5B")  # doctest: +SKIP

    Args:
      path: a directory with config.json, safetensors and a tokenizer, or a hub id, `owner/model@revision`.
      mesh: None puts the parameters on the first device.
      dtype, template, system, template_options, changes: as `open_model` takes them.

    Raises:
      FileNotFoundError: there is no such directory.
      ValueError: it cannot be fetched or read, or its tokenizer does not fit; the message names the file.
    """
    source, model, tokenizer = open_model(
        path, dtype=dtype, template=template, system=system, template_options=template_options, **changes
    )
    return model, load(source.directory, model, source.names, mesh), tokenizer


def open_model(
    path: str | Path,
    *,
    dtype: str = "bfloat16",
    template: str | None = None,
    system: str | None = None,
    template_options: Mapping[str, Any] | None = None,
    **changes: Any,
) -> tuple[ModelSource, DecoderConfig, HfTokenizer]:
    """Returns what a model directory holds before its weights are read; one of the hub is fetched.

    Args:
      dtype: of the computation.
      template, system, template_options: of prompts, as the fields of `data` have them.
      changes: further fields of `DecoderConfig` that a directory does not hold: `temperature`, `remat`, `rules`, ...

    Raises:
      As `load_model`.
    """
    source = read_source(resolve_model(str(path)))
    check(source.directory, source.config, source.names)
    model = dataclasses.replace(source.config, dtype=dtype, **changes)
    tokenizer = HfTokenizer(
        source.directory, vocab=model.vocab, template=template, system=system, options=template_options
    )
    return source, model, tokenizer

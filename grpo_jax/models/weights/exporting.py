"""A trained model in the form in which models are shared: weights, configuration, tokenizer and card."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import jax

from grpo_jax.data import Tokenizer
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Params
from grpo_jax.models.weights.card import Card
from grpo_jax.models.weights.source import ModelSource, fitting_family
from grpo_jax.models.weights.write import SHARD_BYTES, config_json, new_directory, write_json, write_weights

CARRIED = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "max_position_embeddings",
    "initializer_range",
    "attention_dropout",
)
"""Fields that change no number and that other programs look for: they pass from the source's config.json to ours."""

GENERATION = "generation_config.json"


def export(
    params: Params,
    config: DecoderConfig,
    tokenizer: Tokenizer,
    directory: str | Path,
    *,
    card: Card,
    source: ModelSource | None = None,
    dtype: str = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a model directory that transformers and others read. It appears whole or not at all.

    Args:
      params: of the model, on any mesh; every process calls this, the first one writes.
      tokenizer: its files go along, byte for byte.
      directory: must not exist yet, or be empty.
      source: where the run began: its generation_config.json is copied, and fields of its config.json that change no
        number are kept. None takes the family that fits `config`, and the tokenizer's ids.
      dtype: of the stored weights.
      shard_bytes: of one file at most, unless one tensor alone is larger.

    Raises:
      FileExistsError: the directory holds something.
      ValueError: no family has a model like this, a weight is not finite in `dtype`, or no such dtype.
    """
    family = fitting_family(config) if source is None else source.family
    fields = _tokens(tokenizer) if source is None else {n: source.raw[n] for n in CARRIED if n in source.raw}
    settings = config_json(config, family, dtype=dtype, fields=fields)
    with new_directory(directory) as folder:
        write_weights(params, config, family.names(config), folder, dtype=dtype, shard_bytes=shard_bytes)
        write_json(folder, "config.json", settings)
        if source is None or not (source.directory / GENERATION).is_file():
            write_json(folder, GENERATION, _tokens(tokenizer))
        if jax.process_index() == 0:
            if not (folder / GENERATION).exists():
                shutil.copyfile(source.directory / GENERATION, folder / GENERATION)
            tokenizer.save(folder)
            size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
            name = Path(directory).absolute().name
            text = card.text(name, architecture=family.architecture, parameters=size, dtype=dtype)
            (folder / "README.md").write_text(text)


def _tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    ids = list(tokenizer.eos_ids)
    tokens = {"bos_token_id": tokenizer.bos_id, "eos_token_id": ids[0] if len(ids) == 1 else ids}
    return {name: value for name, value in tokens.items() if value is not None} | {"pad_token_id": tokenizer.pad_id}

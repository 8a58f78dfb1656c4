"""The model and its adapters, as sections of the configuration. Nothing here imports JAX."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

from grpo_jax.errors import problem
from grpo_jax.models.config import DecoderConfig
from grpo_jax.settings import Count, Flag, Positive, Text, settings

Adapted = Literal["q", "k", "v", "out", "gate", "up", "down"]


@settings
class ModelSettings:
    """The transformer: one that exists, by `path`, or a new one of a shape given by the other fields."""

    path: Text | None = None
    """A directory of Hugging Face's form, or a hub id such as Qwen/Qwen2.5-0.5B; null initialises a new model."""
    hidden: Count | None = None
    """Width of the residual stream."""
    layers: Count | None = None
    """Number of blocks."""
    heads: Count | None = None
    """Query heads."""
    kv_heads: Count | None = None
    """Key/value heads; each serves heads / kv_heads query heads."""
    head_width: Count | None = None
    """Width of one head (even); null means hidden / heads."""
    mlp: Count | None = None
    """Inner width of the feed-forward part."""
    tied: Flag = True
    """The output projection is the embedding."""
    qkv_bias: Flag = False
    """Biases on the query, key and value projections."""
    qk_norm: Flag = False
    """RMS norm of each query and key head before the rotation."""
    rope_theta: Positive = 10000.0
    """Base of the rotary wavelengths."""
    norm_eps: Positive = 1e-6
    """Added to the mean square inside RMS norms."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the computation; parameters that are trained stay float32. Null: bfloat16 with `path`, else float32."""
    remat: Literal["none", "dots", "layer"] = "none"
    """The backward pass computes again: nothing, all but matrix products, or whole layers. Less memory, more time."""
    unroll: Count = 1
    """Layers per iteration of the training scan: more compile longer and, on a CPU, run faster."""
    logprob_chunk: Count = 16
    """Completion positions whose logits are alive at once."""
    attention_block: Count = 128
    """Queries, and keys, whose attention scores are alive at once in training; larger ones suit a GPU."""


@settings
class Lora:
    """Low-rank adapters (LoRA): they alone are trained, and the weights they change are the reference.

    Embedding, head, norms, biases and the router of experts are never adapted.

    Raises:
      ValueError: no matrix is adapted, or one is named twice.
    """

    rank: Count | None = None
    """Rank of what is added to each adapted matrix; null trains all weights."""
    alpha: Positive = 16.0
    """What is added is multiplied by alpha / rank."""
    targets: tuple[Adapted, ...] = ("q", "k", "v", "out", "gate", "up", "down")
    """The adapted matrices of every layer: of attention q, k, v, out; of the feed-forward part gate, up, down."""

    def __post_init__(self) -> None:
        if not self.targets or len(set(self.targets)) < len(self.targets):
            expected = "at least one matrix, each of them once"
            raise ValueError(problem("targets", list(self.targets), expected, "name some, or set rank to null"))

    @property
    def scale(self) -> float:
        """The factor of the product of both adapters of a matrix."""
        return self.alpha / self.rank


def decoder_config(settings: ModelSettings, *, vocab: int, **changes: Any) -> DecoderConfig:
    """Returns the decoder that the settings of a new model describe.

    Args:
      vocab: tokens of its vocabulary.
      changes: fields of `DecoderConfig` that no setting of the model says, such as `rules`.
    """
    known = {"head_width": settings.hidden // settings.heads, **given(settings)}
    return DecoderConfig(**{**known, "vocab": vocab, **changes})


def given(settings: ModelSettings) -> dict[str, Any]:
    """Returns the fields of `DecoderConfig` that the settings say, those that are null left out."""
    shared = {field.name for field in fields(ModelSettings)} & {field.name for field in fields(DecoderConfig)}
    return {name: value for name in shared if (value := getattr(settings, name)) is not None}

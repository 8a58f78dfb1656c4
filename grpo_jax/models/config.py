"""A decoder as a value: its shape, and how it is computed, scored and laid out. Nothing here imports JAX."""

from __future__ import annotations

import dataclasses
import math

from grpo_jax.mesh.settings import Rules
from grpo_jax.models.rope_scaling import Scaling

ACTIVATIONS = ("silu", "gelu_tanh")

HOW = ("dtype", "remat", "unroll", "temperature", "logprob_chunk", "attention_block", "rules")
"""The fields that say how a model is computed, sampled and laid out, and not what it is: no config.json has them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A pre-norm decoder with RMSNorm, rotary positions, grouped-query attention and a gated MLP.

    Llama is this with the defaults, Qwen2 with `qkv_bias`, Qwen3 with `qk_norm`; `families` knows the others.

    Attributes:
      vocab: tokens in the vocabulary.
      hidden: width of the residual stream.
      layers: number of blocks.
      heads: query heads.
      kv_heads: key/value heads; each serves `heads / kv_heads` query heads.
      head_width: width of one head.
      mlp: width of the gated MLP, or of one expert.
      tied: the output head is the transposed embedding.
      qkv_bias: biases on the query, key and value projections.
      qk_norm: RMSNorm on each query and key head, before the rotation.
      out_bias: a bias on the attention's output projection.
      rope_theta: base of the rotary frequencies.
      rope_scaling: how they are stretched to longer texts; not those of `local_rope_theta`.
      local: for each layer, whether it is local; () makes all of them global.
      window: tokens that a local layer sees, the query's own among them.
      local_rope_theta: base of the local layers' frequencies; None gives them those of the global ones.
      query_scalar: scores are divided by its square root; None takes `head_width`.
      attention_cap: soft bound on the scores.
      final_cap: soft bound on the logits.
      norm_eps: epsilon of RMSNorm.
      zero_centred: the scale of every RMSNorm is stored as its difference from 1.
      post_norms: RMSNorm also on what attention and MLP add to the residual stream.
      scaled_embed: embeddings are multiplied by the square root of `hidden`.
      activation: of the gate: 'silu' or 'gelu_tanh'.
      experts: MLPs of each layer among which a router chooses; 0 is one MLP without a router.
      experts_per_token: experts that each token goes through.
      normalised_routing: the weights of a token's experts are divided by their sum.
      dtype: dtype of activations and of the weights at use; parameters themselves stay float32.
      remat: what the backward pass computes again: 'none' keeps every intermediate of a layer, 'dots' only the results
        of its matrix products, 'layer' nothing but its input.
      unroll: layers per iteration of the training scan. More compile to larger programs, which on a CPU run faster.
      temperature: divides the logits of the policy that is sampled and scored.
      logprob_chunk: completion positions whose logits are alive at once.
      attention_block: queries, and keys, whose scores are alive at once in training; a block in which no query sees a
        key is left out. On a GPU a loop over blocks waits for the host at each: larger ones there.
      rules: how logical axes are split over a mesh.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    mlp: int
    tied: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    out_bias: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: Scaling | None = None
    local: tuple[bool, ...] = ()
    window: int | None = None
    local_rope_theta: float | None = None
    query_scalar: float | None = None
    attention_cap: float | None = None
    final_cap: float | None = None
    norm_eps: float = 1e-6
    zero_centred: bool = False
    post_norms: bool = False
    scaled_embed: bool = False
    activation: str = "silu"
    experts: int = 0
    experts_per_token: int = 0
    normalised_routing: bool = False
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    temperature: float = 1.0
    logprob_chunk: int = 16
    attention_block: int = 128
    rules: Rules = dataclasses.field(default_factory=Rules)

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads: {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.head_width % 2:
            raise ValueError(f"head_width: {self.head_width} is odd; rotary positions rotate pairs of features")
        if self.remat not in ("none", "dots", "layer"):
            raise ValueError(f"remat: {self.remat!r}; expected 'none', 'dots' or 'layer'")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation: {self.activation!r}; expected one of {', '.join(ACTIVATIONS)}")
        if self.local and len(self.local) != self.layers:
            raise ValueError(f"local: {len(self.local)} entries for {self.layers} layers; expected one per layer")
        if any(self.local) and self.window is None:
            raise ValueError("window: None; local layers need the number of tokens that they see")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window: {self.window}; a query sees at least its own token")
        if self.attention_block < 1:
            raise ValueError(f"attention_block: {self.attention_block}; expected at least 1")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature: {self.temperature}; expected a finite number above 0")
        if not 0 <= self.experts_per_token <= self.experts or bool(self.experts) != bool(self.experts_per_token):
            raise ValueError(
                f"experts_per_token: {self.experts_per_token}; expected 1 to {self.experts}, the number of experts"
                if self.experts
                else f"experts_per_token: {self.experts_per_token}, but the model has no experts; set experts"
            )

    @property
    def score_scale(self) -> float:
        """What products of queries and keys are multiplied by."""
        return (self.head_width if self.query_scalar is None else self.query_scalar) ** -0.5

    def is_local(self, layer: int) -> bool:
        """Returns whether this layer is local."""
        return bool(self.local) and self.local[layer]

"""The shape of a decoder, as a value."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A pre-norm decoder with RMSNorm, rotary positions, grouped-query attention and a gated MLP.

    Llama is this with the defaults, Qwen2 with `qkv_bias`, Qwen3 with `qk_norm`.

    Attributes:
      vocab: tokens in the vocabulary.
      hidden: width of the residual stream.
      layers: number of blocks.
      heads: query heads.
      kv_heads: key/value heads; each serves `heads / kv_heads` query heads.
      head_width: width of one head.
      mlp: width of the gated MLP.
      tied: the output head is the transposed embedding.
      qkv_bias: biases on the query, key and value projections.
      qk_norm: RMSNorm on each query and key head, before the rotation.
      rope_theta: base of the rotary frequencies.
      norm_eps: epsilon of RMSNorm.
      dtype: dtype of activations and of the weights at use; parameters themselves stay float32.
      remat: 'layer' recomputes each block in the backward pass, 'none' keeps its intermediates.
      unroll: layers per iteration of the training scan. More compile to larger programs, which on a CPU run faster.
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
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads: {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.head_width % 2:
            raise ValueError(f"head_width: {self.head_width} is odd; rotary positions turn pairs of features")
        if self.remat not in ("none", "layer"):
            raise ValueError(f"remat: {self.remat!r}; expected 'none' or 'layer'")

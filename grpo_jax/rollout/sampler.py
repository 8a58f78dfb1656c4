"""How a token is drawn from logits, and its log-probability under that draw."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grpo_jax.models.attention import MASKED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws from softmax(logits / temperature), restricted by the filters that are set.

    Attributes:
      temperature: 0 takes the most likely token.
      top_k: only the k most likely tokens, and those that tie with the last of them.
      top_p: only the smallest set of most likely tokens that holds this probability (nucleus, arXiv:1904.09751).
      min_p: only tokens with at least this share of the most likely one's probability (arXiv:2407.01082).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature: {self.temperature}; expected 0 (greedy) or a finite number above it")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ValueError(f"top_k: {self.top_k}; expected an integer of at least 1")
        for name, share in (("top_p", self.top_p), ("min_p", self.min_p)):
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name}: {share}; expected a number in (0, 1]")

    @property
    def filters(self) -> bool:
        """True where the draw is not from the whole distribution."""
        return self.top_k is not None or self.top_p is not None or self.min_p is not None

    def __call__(
        self, logits: Float[Array, "*B V"], uniform: Float[Array, "*B"]
    ) -> tuple[Int[Array, "*B"], Float[Array, "*B"]]:
        """Returns the token and its log-probability.

        Args:
          logits: float32.
          uniform: one number in [0, 1) per row; the draw is the inverse of the cumulative distribution at it.
        """
        if self.temperature == 0:
            token = jnp.argmax(logits, -1).astype(jnp.int32)
            return token, jnp.zeros(token.shape, jnp.float32)
        return inverse_cdf(self._filter(logits / self.temperature), uniform)

    def _filter(self, logits: jax.Array) -> jax.Array:
        if self.top_k is not None:
            kth = jax.lax.top_k(logits, min(self.top_k, logits.shape[-1]))[0][..., -1:]
            logits = jnp.where(logits >= kth, logits, MASKED)
        if self.top_p is not None and self.top_p < 1:
            ordered = jnp.sort(logits, -1, descending=True)
            probability = jax.nn.softmax(ordered)
            kept = (jnp.cumsum(probability, -1) - probability < self.top_p).sum(-1, keepdims=True)
            logits = jnp.where(logits >= jnp.take_along_axis(ordered, kept - 1, -1), logits, MASKED)
        if self.min_p is not None:
            logits = jnp.where(logits >= logits.max(-1, keepdims=True) + jnp.log(self.min_p), logits, MASKED)
        return logits


def inverse_cdf(
    logits: Float[Array, "*B V"], uniform: Float[Array, "*B"]
) -> tuple[Int[Array, "*B"], Float[Array, "*B"]]:
    """Returns the first token whose cumulative probability exceeds `uniform`, and its log-probability.

    One random number per row instead of one per token of the vocabulary. The sum runs on two levels, over blocks of
    about sqrt(V) tokens and then inside the block that was hit, so the vocabulary is read once.
    """
    vocab = logits.shape[-1]
    block = 1 << max(vocab - 1, 1).bit_length() // 2
    top = logits.max(-1, keepdims=True)
    weight = jnp.exp(logits - top)
    padded = jnp.pad(weight, [(0, 0)] * (weight.ndim - 1) + [(0, -vocab % block)])
    blocks = padded.reshape(*weight.shape[:-1], -1, block)
    mass = blocks.sum(-1)
    total = mass.sum(-1)
    target = (uniform * total)[..., None]
    hit_block, before = _first_above(mass, target)
    inside = jnp.take_along_axis(blocks, hit_block[..., None, None], axis=-2)[..., 0, :]
    hit, _ = _first_above(inside, target - before[..., None])
    token = jnp.minimum(hit_block * block + hit, vocab - 1)  # NaN logits hit nothing; stay inside the vocabulary
    drawn = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return token.astype(jnp.int32), drawn - top[..., 0] - jnp.log(total)


def _first_above(weight: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the first index of positive weight whose running sum exceeds the target, and the sum before it.

    Rounding can leave the whole sum at or below the target; the last index of positive weight is then the answer.
    """
    running = jnp.cumsum(weight, -1)
    above = (running > target) & (weight > 0)
    last = weight.shape[-1] - 1 - jnp.argmax(weight[..., ::-1] > 0, -1)
    index = jnp.where(above.any(-1), jnp.argmax(above, -1), last)
    chosen = index[..., None]
    before = jnp.take_along_axis(running, chosen, -1) - jnp.take_along_axis(weight, chosen, -1)
    return index, before[..., 0]

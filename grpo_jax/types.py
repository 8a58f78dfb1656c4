"""The values that travel between the floors: frozen pytrees, nothing else.

Axes: P prompts, G completions per prompt, S prompt tokens, T completion tokens.
"""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Int, Real


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightedSum:
    """A mean that nobody has divided yet: `total / weight`.

    Sums of micro-batches and of devices add up exactly, so a loss does not depend on how its batch was cut.

    >>> WeightedSum(3.0, 2.0) + WeightedSum(1.0, 2.0)
    WeightedSum(total=4.0, weight=4.0)
    """

    total: Real[Array, ""] | float
    weight: Real[Array, ""] | float

    def __add__(self, other: WeightedSum) -> WeightedSum:
        return WeightedSum(self.total + other.total, self.weight + other.weight)

    def mean(self) -> Float[Array, ""]:
        """Returns `total / weight`, and 0 where the weight is 0."""
        empty = self.weight == 0
        return jax.numpy.where(empty, 0.0, self.total / jax.numpy.where(empty, 1.0, self.weight))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """Prompts, right-padded. Each holds at least one token."""

    tokens: Int[Array, "*P S"]
    mask: Bool[Array, "*P S"]
    """True on the tokens of the prompt: a prefix of every row."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
    """What the sampler drew, and what it knows about it."""

    tokens: Int[Array, "P G T"]
    mask: Bool[Array, "P G T"]
    """True on the tokens that were drawn, the end-of-sequence token included."""
    logp: Float[Array, "P G T"]
    """log pi(token) under the distribution that it was drawn from; 0 outside the mask."""
    ended: Bool[Array, "P G"]
    """True where an end-of-sequence token closed the completion; False where the limit cut it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Grades:
    """What the rewards say of each completion."""

    reward: Float[Array, "P G"]
    valid: Bool[Array, "P G"]
    """False where no reward applies: such a completion is in no mean and has no gradient."""
    step_reward: Float[Array, "P G K"] | None = None
    """Rewards of the steps of a completion, for process supervision."""
    step_end: Int[Array, "P G K"] | None = None
    """The token that ends each step."""
    step_valid: Bool[Array, "P G K"] | None = None
    term_reward: Float[Array, "P G K"] | None = None
    """What each reward function said; NaN where it does not apply."""
    term_weight: Float[Array, " K"] | None = None
    """Their weights in `reward`."""
    greedy_reward: Float[Array, " P"] | None = None
    """Reward of each prompt's greedy completion; NaN where none applies."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """What an update reads: prompts, completions, and per-token quantities without a gradient."""

    prompt: PromptBatch
    tokens: Int[Array, "P G T"]
    mask: Bool[Array, "P G T"]
    advantage: Float[Array, "P G T"]
    old_logp: Float[Array, "P G T"] | None = None
    """None: the policy that sampled is the policy that learns (one update per rollout)."""
    sampler_logp: Float[Array, "P G T"] | None = None
    """What the sampler said; only a metric compares it with the trainer's own log-probs."""
    ref_logp: Float[Array, "P G T"] | None = None
    """None: no KL estimator in the loss."""
    ref_hidden: Float[Array, "P G T D"] | None = None
    """The reference's last hidden states; only the exact KL in the loss reads them."""
    selected: Bool[Array, "P G T"] | None = None
    """The tokens that the surrogate treats specially, where it has a `select`."""
    value: Float[Array, "P G T"] | None = None
    """What the critic expected before each token; None without a critic."""
    returns: Float[Array, "P G T"] | None = None
    """What the critic learns to expect."""

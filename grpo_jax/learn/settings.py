"""The settings of updates and of the optimizer. Nothing here imports JAX."""

from __future__ import annotations

from typing import Literal

from grpo_jax.settings import Count, Decay, Flag, NonNegative, Positive, Text, Whole, settings


@settings
class UpdateSettings:
    """How one rollout becomes optimizer updates."""

    minibatches: Count = 1
    """Optimizer updates that one pass over a step's prompts is cut into."""
    epochs: Count = 1
    """Passes over the prompts of a step."""
    micro_prompts: Count | None = None
    """Prompts whose gradient is computed at once: memory for all their completions at the limit, of which micro-batches
    of live tokens need no more. Null means a whole minibatch."""
    overlong_buffer: Count | None = None
    """Tokens before sampling.max_tokens over which the reward sinks linearly; null leaves rewards alone."""
    overlong_penalty: NonNegative = 1.0
    """How far the reward has sunk at the limit, in units of the reward."""
    mask_truncated: Flag = False
    """Leave completions that the limit cut out of the loss."""

    @property
    def updates(self) -> int:
        """Optimizer updates per rollout."""
        return self.minibatches * self.epochs


@settings
class OptimizerSettings:
    """AdamW and its schedule, or an optax transformation of one's own."""

    learning_rate: Positive
    """Highest learning rate."""
    critic_learning_rate: Positive | None = None
    """Highest learning rate of the critic, if the objective has one; null takes learning_rate."""
    warmup_steps: Whole = 0
    """Optimizer updates of linear increase from 0."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What follows the increase; cosine and linear reach 0 at the last update."""
    transformation: Text | None = None
    """`package.module:function`, called with the schedule; what it returns takes AdamW's place. Null is AdamW."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay, per update and unit of learning rate."""
    decay: Literal["matrices", "all"] = "matrices"
    """Weights that decay: matrices (projections, embedding, head, adapters), or norms and biases too."""
    b1: Decay = 0.9
    """Decay of the mean of gradients."""
    b2: Decay = 0.999
    """Decay of the mean of squared gradients."""
    eps: Positive = 1e-8
    """Added to the root of the mean square."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the stored mean of gradients; the mean of squares stays float32."""
    max_grad_norm: Positive | None = 1.0
    """Global norm above which a gradient is scaled down; null never scales."""

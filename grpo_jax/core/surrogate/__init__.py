"""Surrogates: the loss of a token, given its ratio and its advantage, and whether a bound cut it.

The slot's contract is `(log_ratio[..., T], logp[..., T], advantage[..., T], *, ...) -> (loss[..., T], clipped[..., T])`.
All inputs are 0 outside the mask, and what is returned there is never read. What else a surrogate needs it declares as
keyword-only parameters (`core.slots`):

    mask       bool  [..., T]   scored tokens
    old_logp   float [..., T]   log-probabilities under the policy that sampled, a constant
    selected   bool  [..., T]   the tokens that the surrogate's own `select` picked

A surrogate that treats some tokens of a batch specially, because of how they compare with all others, has a method
`select(*, ...) -> bool[..., T]`. It runs once over the whole batch before it is cut, so that the cut does not matter, and
declares what it reads of: mask, old_logp, advantage, entropy (of the policy that sampled), key (for random choices).
"""

from grpo_jax.core.surrogate.clip import PpoClip
from grpo_jax.core.surrogate.score import reinforce

__all__ = ["PpoClip", "reinforce"]

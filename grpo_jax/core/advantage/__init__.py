"""Advantages: rewards turned into how much better than expected a completion, or a token, did.

The slot's contract is `(reward[..., G], valid[..., G], *, ...) -> advantage`, computed once over the whole batch before
it is cut into minibatches. The result is `[..., G]`, the same for every token of a completion, or `[..., G, T]`. What
an advantage needs besides the rewards it declares as keyword-only parameters (`core.slots`):

    mask            bool  [..., G, T]   scored tokens, completions without a valid reward left out
    token_reward    float [..., G, T]   the KL penalty of each token, and the reward on the last scored one
    value           float [..., G, T]   what the critic expects before each token
    greedy_reward   float [...]         reward of the prompt's greedy completion; NaN where none applies
    term_reward     float [..., G, K]   each reward function's number; NaN where it does not apply
    term_weight     float [K]           their weights in the sum
    step_reward, step_end, step_valid   [..., G, K]   rewards of the steps of a completion

Statistics over the batch run over all axes. A completion that is not valid, or whose reward is not finite, has
advantage exactly 0 and takes part in no statistic; tokens outside the mask have advantage 0.

Rewards are data: no gradient is meant to flow here, and the objective detaches the result.

Axes: G completions of one prompt, K steps or reward terms, T tokens.
"""

from grpo_jax.core.advantage.baseline import greedy_baseline, length_weighted
from grpo_jax.core.advantage.batch import BatchScaled, gpg
from grpo_jax.core.advantage.group import GroupNormalised, centred, leave_one_out, mean_scaled
from grpo_jax.core.advantage.pass_at_k import PassAtK
from grpo_jax.core.advantage.process import ProcessNormalised
from grpo_jax.core.advantage.terms import TermNormalised
from grpo_jax.core.advantage.tokens import Gae, GroupBaselineWhitened, ReinforcePlusPlus

__all__ = [
    "BatchScaled",
    "Gae",
    "GroupBaselineWhitened",
    "GroupNormalised",
    "PassAtK",
    "ProcessNormalised",
    "ReinforcePlusPlus",
    "TermNormalised",
    "centred",
    "gpg",
    "greedy_baseline",
    "leave_one_out",
    "length_weighted",
    "mean_scaled",
]

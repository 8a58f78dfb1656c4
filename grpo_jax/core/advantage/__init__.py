"""Advantages: rewards turned into how much better than expected a completion, or a token, did.

The slot's contract is `core.slots.Advantage`: the arguments, what else an advantage may ask for, what it returns and
what it refuses. A docstring here names only what is its own. What holds for all of them:

    not valid           a completion that is not valid, or whose reward is not finite, has advantage exactly 0 and takes
                        part in no statistic; a token outside the mask has advantage 0
    without variance    a lone sample, and a group with one distinct reward, are exactly at their mean: they are
                        recognised by max == min, because the rounding of a mean would otherwise leave a deviation that
                        a division blows up
    gradient            rewards are data, and the objective detaches the advantage; what a docstring says of a gradient,
                        by default that of its formula, is there to be tested

Axes: G completions of one prompt, K steps or reward terms, T tokens.
"""

from grpo_jax.core.advantage.baseline import greedy_baseline, length_weighted
from grpo_jax.core.advantage.batch import BatchScaled, zero_variance_rescaled
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
    "greedy_baseline",
    "leave_one_out",
    "length_weighted",
    "mean_scaled",
    "zero_variance_rescaled",
]

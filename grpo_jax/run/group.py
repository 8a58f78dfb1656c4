"""The record of a step: a list of groups, each a prompt with its completions and what they are worth.

Everything that happens to completions between the sampler and the update is a function of such a list. Choosing,
joining and dropping groups are what lists do. On the device the groups are an axis: `place` and `place_grades`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from grpo_jax.core.slots import asks
from grpo_jax.data.chat import Prompt
from grpo_jax.data.tokenizer import Tokenizer
from grpo_jax.mesh.rules import sharding
from grpo_jax.rewards import Rewards, Scores
from grpo_jax.run.run import Run
from grpo_jax.types import Grades, PromptBatch, Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """One prompt and its completions, on the host."""

    index: int
    """Row of the data set."""
    prompt: Prompt
    columns: dict[str, Any]
    """The row's other columns."""
    completions: list[str]
    """G texts."""
    prompt_tokens: PromptBatch
    """NumPy arrays `[S]`."""
    rollout: Rollout
    """NumPy arrays `[G, T]` and `[G]`."""
    scores: Scores | None = None
    """What the rewards say of the completions; None before they are asked."""
    greedy_reward: float = np.nan
    """Reward of the greedy completion; NaN where none applies or nobody asked."""


def rewarded(rewards: Rewards, groups: Sequence[Group]) -> list[Group]:
    """Returns the groups with their scores: every reward is asked once about all completions."""
    each = [(group, text) for group in groups for text in group.completions]
    columns = {name: [group.columns[name] for group, _ in each] for name in groups[0].columns}
    scores = rewards.score([group.prompt for group, _ in each], [text for _, text in each], columns)
    parts = scores.groups(len(groups[0].completions))
    return [dataclasses.replace(group, scores=part) for group, part in zip(groups, parts, strict=True)]


def rewards_differ(group: Group) -> bool:
    """Returns whether the rewards of valid completions, or of their steps, differ: else a group has no gradient."""
    scores = group.scores
    said = [(total, *map(tuple, steps or ())) for total, steps in zip(scores.total.tolist(), scores.steps, strict=True)]
    return len({each for each, valid in zip(said, scores.valid, strict=True) if valid}) > 1


def correct(groups: Sequence[Group]) -> np.ndarray:
    """Returns `[P, G]`, per completion, whether the first reward, which tells right from wrong, is positive."""
    first = [next(iter(group.scores.each.values())) for group in groups]
    return np.nan_to_num(np.stack(first), nan=0.0) > 0


def place(run: Run, groups: Sequence[Group]) -> tuple[PromptBatch, Rollout]:
    """Returns prompts `[P, S]` and completions `[P, G, T]` on the mesh."""
    rules = run.learner.model.rules
    prompt, rollout = _stacked([(group.prompt_tokens, group.rollout) for group in groups])
    return (
        jax.device_put(prompt, sharding(run.mesh, rules, "prompt")),
        jax.device_put(rollout, sharding(run.mesh, rules, "prompt", "sample")),
    )


def place_grades(run: Run, groups: Sequence[Group]) -> Grades:
    """Returns the rewards on the mesh, with what else the objective's advantage asks for."""
    asked = asks(run.learner.objective.advantage)
    grades: dict[str, np.ndarray] = {
        "reward": np.stack([group.scores.total for group in groups]),
        "valid": np.stack([group.scores.valid for group in groups]),
    }
    if "greedy_reward" in asked:
        grades["greedy_reward"] = np.array([group.greedy_reward for group in groups], np.float32)
    if "step_reward" in asked:
        grades |= _steps(groups, run.tokenizer)
    if "term_reward" in asked:
        terms = [np.stack(list(group.scores.each.values()), axis=-1) for group in groups]
        grades["term_reward"] = np.stack(terms)
        grades["term_weight"] = np.array([reward.weight for reward in run.rewards], np.float32)
    axes = {1: ("prompt",), 2: ("prompt", "sample"), 3: ("prompt", "sample")}
    named = {name: () if name == "term_weight" else axes[value.ndim] for name, value in grades.items()}
    rules = run.learner.model.rules
    return Grades(**{n: jax.device_put(value, sharding(run.mesh, rules, *named[n])) for n, value in grades.items()})


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _steps(groups: Sequence[Group], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Returns step rewards as arrays `[P, G, K]`; positions in the text become the tokens that reach them."""
    scored = [steps for group in groups for steps in group.scores.steps]
    if all(steps is None for steps in scored):
        return {}
    most = max(len(steps) for steps in scored if steps is not None)
    # A power of two, so that the number of compiled programs stays small.
    width = 1 << max(most - 1, 0).bit_length()
    value, end = np.zeros((len(scored), width), np.float32), np.zeros((len(scored), width), np.int32)
    valid = np.zeros((len(scored), width), bool)
    rows = [row for group in groups for row in zip(group.rollout.tokens, group.rollout.mask, strict=True)]
    for i, (steps, (tokens, mask)) in enumerate(zip(scored, rows, strict=True)):
        if not steps:
            continue
        reached = tokenizer.ends(tokens[mask].tolist())
        positions = [position for position, _ in steps]
        count = len(steps)
        end[i, :count] = np.minimum(np.searchsorted(reached, positions), len(reached) - 1)
        value[i, :count] = [number for _, number in steps]
        valid[i, :count] = True
    shape = (len(groups), -1, width)
    return {
        "step_reward": value.reshape(shape),
        "step_end": end.reshape(shape),
        "step_valid": valid.reshape(shape),
    }

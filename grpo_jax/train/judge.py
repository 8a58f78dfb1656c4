"""Completions to rewards: the host's scores as arrays that the device reads."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from grpo_jax.core.slots import asks
from grpo_jax.mesh import sharding
from grpo_jax.rewards import Rewards, Scores
from grpo_jax.train.experience import Rewarded
from grpo_jax.train.programs import Drawn
from grpo_jax.train.run import Run


def judge(rewards: Rewards, drawn: Drawn) -> Scores:
    """Returns what the rewards say of all completions."""
    prompts = [text for text in drawn.prompts for _ in range(drawn.tokens.shape[1])]
    return rewards.score(prompts, drawn.completions, drawn.columns)


def place_rewards(run: Run, drawn: Drawn, scores: Scores, greedy: np.ndarray | None = None) -> Rewarded:
    """Returns the rewards on the mesh, with what else the objective's advantage asks for.

    Args:
      greedy: reward of each prompt's greedy completion `[P]`, NaN where none applies.
    """
    P, G = drawn.tokens.shape[:2]
    asked = asks(run.learner.objective.advantage)
    rewarded = Rewarded(
        reward=scores.total.reshape(P, G),
        valid=scores.valid.reshape(P, G),
        greedy_reward=greedy,
        **(_steps(run, scores, drawn) if "step_reward" in asked else {}),
        **(_terms(run, scores, (P, G)) if "term_reward" in asked else {}),
    )
    by_axes = {1: ("prompt",), 2: ("prompt", "sample"), 3: ("prompt", "sample")}
    whole = sharding(run.mesh)
    place = {f.name: whole if f.name == "term_weight" else None for f in dataclasses.fields(Rewarded)}
    return dataclasses.replace(
        rewarded,
        **{
            name: jax.device_put(value, place[name] or sharding(run.mesh, *by_axes[value.ndim]))
            for name, value in vars(rewarded).items()
            if value is not None
        },
    )


def solved(scores: Scores) -> np.ndarray:
    """Returns, per completion, whether the first reward, which tells right from wrong, is positive."""
    first = next(iter(scores.each.values()))
    return np.nan_to_num(first, nan=0.0) > 0


def _steps(run: Run, scores: Scores, drawn: Drawn) -> dict[str, np.ndarray]:
    """Returns step rewards as arrays `[P, G, K]`; positions in the text become the tokens that reach them."""
    if all(steps is None for steps in scores.steps):
        return {}
    P, G = drawn.tokens.shape[:2]
    most = max(len(steps) for steps in scores.steps if steps is not None)
    # A power of two, so that the number of compiled programs stays small.
    width = 1 << max(most - 1, 0).bit_length()
    value, end = np.zeros((P * G, width), np.float32), np.zeros((P * G, width), np.int32)
    valid = np.zeros((P * G, width), bool)
    tokens, mask = (x.reshape(P * G, -1) for x in (drawn.tokens, drawn.mask))
    for i, steps in enumerate(scores.steps):
        if not steps:
            continue
        reached = run.tokenizer.ends(tokens[i][mask[i]].tolist())
        positions = [position for position, _ in steps]
        count = len(steps)
        end[i, :count] = np.minimum(np.searchsorted(reached, positions), len(reached) - 1)
        value[i, :count] = [number for _, number in steps]
        valid[i, :count] = True
    shape = (P, G, width)
    return {
        "step_reward": value.reshape(shape),
        "step_end": end.reshape(shape),
        "step_valid": valid.reshape(shape),
    }


def _terms(run: Run, scores: Scores, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Returns every reward function's number `[P, G, K]` and its weight `[K]`."""
    return {
        "term_reward": np.stack([values.reshape(shape) for values in scores.each.values()], axis=-1),
        "term_weight": np.array([reward.weight for reward in run.rewards], np.float32),
    }

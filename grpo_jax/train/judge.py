"""Completions to rewards: the host's scores as arrays that the device reads."""

from __future__ import annotations

import jax
import numpy as np

from grpo_jax.mesh import sharding
from grpo_jax.rewards import Rewards, Scores
from grpo_jax.train.experience import Rewarded
from grpo_jax.train.programs import Drawn
from grpo_jax.train.run import Run


def judge(run: Run, rewards: Rewards, drawn: Drawn) -> tuple[Rewarded, Scores]:
    """Returns the rewards of all completions, on the mesh and as the host's account of them."""
    P, G = drawn.tokens.shape[:2]
    prompts = [text for text in drawn.prompts for _ in range(G)]
    scores = rewards.score(prompts, drawn.completions, drawn.columns)
    rewarded = Rewarded(
        reward=scores.total.reshape(P, G), valid=scores.valid.reshape(P, G), **_steps(run, scores, drawn)
    )
    return jax.device_put(rewarded, sharding(run.mesh, "prompt", "sample")), scores


def solved(scores: Scores) -> np.ndarray:
    """Returns, per completion, whether the first reward, which tells right from wrong, is positive."""
    first = next(iter(scores.each.values()))
    return np.nan_to_num(first, nan=0.0) > 0


def _steps(run: Run, scores: Scores, drawn: Drawn) -> dict[str, np.ndarray]:
    """Returns step rewards as arrays `[P, G, K]`; positions in the text become the tokens that reach them."""
    if not run.learner.objective.process or all(steps is None for steps in scores.steps):
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

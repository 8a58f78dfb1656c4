"""The completions of a step, with their rewards: drawn once, or until enough groups teach something."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import jax
import numpy as np

from grpo_jax.core.slots import asks
from grpo_jax.data import batch_indices
from grpo_jax.mesh import fetch, sharding
from grpo_jax.models.decoder import Params
from grpo_jax.rewards import Rewards, Scores
from grpo_jax.rollout import Sampler
from grpo_jax.train.experience import Rewarded
from grpo_jax.train.judge import judge, place_rewards
from grpo_jax.train.programs import Drawn, draw
from grpo_jax.train.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gathered:
    """One step's worth of completions and what they are worth."""

    drawn: Drawn
    scores: Scores
    rewarded: Rewarded
    rounds: int
    """Batches of prompts that were drawn for it."""
    reward_seconds: float


def gather(run: Run, rewards: Rewards, published: Params, *, step: int, cursor: int) -> Gathered:
    """Returns the completions of a step.

    With `run.dynamic_rounds` above 1, groups whose rewards are all equal, which have no gradient, are replaced by
    groups of the next prompts until none is left or the rounds are used up (DAPO's dynamic sampling,
    arXiv:2503.14476, section 3.2). What is missing then is filled up with such groups, the first drawn first.
    """
    seconds, rounds = 0.0, []
    while not rounds or (len(rounds) < run.dynamic_rounds and _teaching(rounds) < run.prompts):
        indices = batch_indices(
            run.seed, cursor + len(rounds) * run.prompts, size=len(run.train_data), count=run.prompts
        )
        drawn = _draw(run, published, indices, step, run.rolling.group, run.learner.temperature)
        started = time.monotonic()
        scores = judge(rewards, drawn)
        seconds += time.monotonic() - started
        rounds.append((drawn, scores))
    drawn, scores = rounds[0] if len(rounds) == 1 else _merge(run, rounds)
    greedy = None
    if "greedy_reward" in asks(run.learner.objective.advantage):
        greedy = _greedy(run, rewards, published, drawn.indices, step)
    rewarded = place_rewards(run, drawn, scores, greedy)
    return Gathered(drawn=drawn, scores=scores, rewarded=rewarded, rounds=len(rounds), reward_seconds=seconds)


def teaches(scores: Scores, group: int) -> np.ndarray:
    """Returns, per prompt, whether the rewards of its valid completions, or of their steps, differ."""
    said = [(total, *map(tuple, steps or ())) for total, steps in zip(scores.total.tolist(), scores.steps, strict=True)]
    groups = range(0, len(said), group)
    return np.array([len({said[i] for i in range(g, g + group) if scores.valid[i]}) > 1 for g in groups])


def _teaching(rounds: list[tuple[Drawn, Scores]]) -> int:
    return sum(int(teaches(scores, drawn.tokens.shape[1]).sum()) for drawn, scores in rounds)


def _draw(run: Run, published: Params, indices: Sequence[int], step: int, group: int, temperature: float) -> Drawn:
    sampler = Sampler(temperature=temperature)
    return draw(run, published, run.train_data, indices, step=step, group=group, sampler=sampler)


def _greedy(run: Run, rewards: Rewards, published: Params, indices: Sequence[int], step: int) -> np.ndarray:
    """Returns the reward of each prompt's greedy completion `[P]`, NaN where none applies."""
    # As many copies as the mesh splits a group into: they are equal, and one counts.
    group = run.mesh.shape["group"]
    scores = judge(rewards, _draw(run, published, indices, step, group, temperature=0.0))
    return np.where(scores.valid, scores.total, np.nan).astype(np.float32).reshape(-1, group)[:, 0]


def _merge(run: Run, rounds: list[tuple[Drawn, Scores]]) -> tuple[Drawn, Scores]:
    """Returns one round's worth of groups out of several: those that teach first, in the order they were drawn."""
    group = run.rolling.group
    teaching = np.concatenate([teaches(scores, group) for _, scores in rounds])
    chosen = np.sort(np.argsort(~teaching, kind="stable")[: run.prompts])
    each = (chosen[:, None] * group + np.arange(group)).ravel()
    draws = [drawn for drawn, _ in rounds]
    batch = jax.tree.map(lambda *x: np.concatenate(x)[chosen], *[fetch((d.prompt, d.rollout)) for d in draws])
    prompt, rollout = batch
    pick = lambda lists, where: list(map([x for part in lists for x in part].__getitem__, where))  # noqa: E731
    drawn = Drawn(
        indices=pick([d.indices for d in draws], chosen),
        prompt=jax.device_put(prompt, sharding(run.mesh, "prompt")),
        rollout=jax.device_put(rollout, sharding(run.mesh, "prompt", "sample")),
        prompts=pick([d.prompts for d in draws], chosen),
        completions=pick([d.completions for d in draws], each),
        columns={name: pick([d.columns[name] for d in draws], each) for name in draws[0].columns},
        tokens=rollout.tokens,
        mask=rollout.mask,
        ended=rollout.ended,
    )
    scores = [scores for _, scores in rounds]
    return drawn, Scores(
        total=np.concatenate([s.total for s in scores])[each],
        valid=np.concatenate([s.valid for s in scores])[each],
        each={name: np.concatenate([s.each[name] for s in scores])[each] for name in scores[0].each},
        failures={name: sum(s.failures[name] for s in scores) for name in scores[0].failures},
        errors={name: text for s in reversed(scores) for name, text in s.errors.items()},
        steps=pick([s.steps for s in scores], each),
    )

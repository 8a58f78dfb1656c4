"""The completions of a step, with their rewards: drawn once, or until enough groups differ in reward."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.core.slots import asks
from grpo_jax.data import Dataset, batch_indices, encode_prompts
from grpo_jax.mesh.mesh import fetch
from grpo_jax.mesh.rules import sharding
from grpo_jax.models.decoder import Params
from grpo_jax.rewards import Rewards
from grpo_jax.rollout.sampler import Sampler
from grpo_jax.run.compiled import compiled_keys, compiled_sample
from grpo_jax.run.group import Group, rewarded, rewards_differ
from grpo_jax.run.run import Run
from grpo_jax.types import PromptBatch


def draw_step(
    run: Run, rewards: Rewards, published: Params, *, step: int, cursor: int
) -> tuple[list[Group], list[Group], float]:
    """Returns the rewarded groups of a step, all groups that were drawn for it, and the seconds that rewards took.

    With `train.dynamic_rounds` above 1, groups whose rewards are all equal, which have no gradient, are replaced by
    groups of the next prompts until none is left or the rounds are used up (DAPO's dynamic sampling,
    arXiv:2503.14476, section 3.2). What is missing then is filled up with such groups, the first drawn first.
    """
    count, seconds = run.settings.train.prompts, 0.0
    drawn: list[Group] = []
    for _ in range(run.settings.train.dynamic_rounds):
        rows = batch_indices(run.settings.seed, cursor + len(drawn), size=len(run.train_data), count=count)
        groups = draw(run, published, run.train_data, rows, step=step, group=run.settings.sampling.group)
        started = time.monotonic()
        drawn += rewarded(rewards, groups)
        seconds += time.monotonic() - started
        if sum(map(rewards_differ, drawn)) >= count:
            break
    groups = choose(drawn, count)
    if "greedy_reward" in asks(run.learner.objective.advantage):
        groups = _with_greedy(run, rewards, published, groups, step)
    return groups, drawn, seconds


def choose(groups: Sequence[Group], count: int) -> list[Group]:
    """Returns `count` groups in the order they were drawn: those whose rewards differ first of all."""
    preferred = sorted(range(len(groups)), key=lambda i: not rewards_differ(groups[i]))
    return [groups[i] for i in sorted(preferred[:count])]


def draw(
    run: Run,
    published: Params,
    data: Dataset,
    rows: Sequence[int],
    *,
    step: int | np.uint32,
    group: int,
    sampler: Sampler | None = None,
) -> list[Group]:
    """Returns a group of `group` completions for each of the data set's `rows`.

    Args:
      step: what the keys derive from, beside the seed and the row.
      sampler: None draws from the whole distribution, as training does.
    """
    settings, rules = run.settings, run.learner.model.rules
    prompts = data.prompts(rows)
    tokens = encoded(run, prompts)
    keys = compiled_keys(settings.seed, step, jnp.asarray(rows, jnp.int32), group=group)
    rollout = compiled_sample(
        run.learner.model,
        published,
        jax.device_put(tokens, sharding(run.mesh, rules, "prompt")),
        jax.device_put(keys, sharding(run.mesh, rules, "prompt", "sample")),
        max_tokens=settings.sampling.max_tokens,
        eos_ids=run.tokenizer.eos_ids,
        sampler=sampler,
        check_every=settings.sampling.check_every,
    )
    rollout = fetch(rollout)
    columns = data.columns(rows)
    return [
        Group(
            index=int(row),
            prompt=prompts[i],
            columns={name: values[i] for name, values in columns.items()},
            completions=_texts(run, rollout.tokens[i], rollout.mask[i]),
            prompt_tokens=jax.tree.map(lambda x, i=i: x[i], tokens),
            rollout=jax.tree.map(lambda x, i=i: x[i], rollout),
        )
        for i, row in enumerate(rows)
    ]


def encoded(run: Run, prompts: Sequence) -> PromptBatch:
    """Returns the prompts' tokens, right-padded to the limit, as NumPy arrays."""
    tokens, mask = encode_prompts(prompts, run.tokenizer, length=run.settings.data.prompt_length)
    return PromptBatch(tokens=tokens, mask=mask)


def _texts(run: Run, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
    return [run.tokenizer.decode(row[drawn].tolist()) for row, drawn in zip(tokens, mask, strict=True)]


def _with_greedy(run: Run, rewards: Rewards, published: Params, groups: list[Group], step: int) -> list[Group]:
    """Returns the groups with the reward of each prompt's greedy completion."""
    # As many copies as the mesh splits a group into: they are equal, and one counts.
    copies = run.group_devices
    rows = [group.index for group in groups]
    greedy = draw(run, published, run.train_data, rows, step=step, group=copies, sampler=Sampler(temperature=0.0))
    scores = [group.scores for group in rewarded(rewards, greedy)]
    values = [float(score.total[0]) if score.valid[0] else np.nan for score in scores]
    return [dataclasses.replace(group, greedy_reward=value) for group, value in zip(groups, values, strict=True)]

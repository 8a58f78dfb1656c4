"""The completions of a step, with their rewards: drawn once, or until enough groups differ in reward."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.core.slots import asks
from grpo_jax.data import Dataset, batch_indices, encode_prompts
from grpo_jax.models.decoder import Params
from grpo_jax.rewards import Rewards, Scoring
from grpo_jax.rollout.sampler import Sampler
from grpo_jax.rollout.stages import Stages
from grpo_jax.run.compiled import compiled_keys
from grpo_jax.run.group import Group, rewarded, rewards_differ
from grpo_jax.run.run import Run
from grpo_jax.types import PromptBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """What was drawn for a step."""

    groups: list[Group]
    """Those that are learnt from."""
    every: list[Group]
    """All of them."""
    waited: float
    """Seconds for which nothing but rewards was awaited."""
    occupancy: float
    """The share of live tokens in all that the rollout computed."""


def draw_step(
    run: Run,
    rewards: Rewards,
    published: Params,
    *,
    step: int,
    cursor: int,
    meanwhile: Callable[[], Any] = lambda: None,
) -> Drawn:
    """Returns the rewarded groups of a step.

    With `train.dynamic_rounds` above 1, groups whose rewards are all equal, which have no gradient, are replaced by
    groups of the next prompts until none is left or the rounds are used up (DAPO's dynamic sampling,
    arXiv:2503.14476, section 3.2). What is missing then is filled up with such groups, the first drawn first. A round
    begins before the rewards of the last one are back; if they say that it is not needed, it is forgotten.

    Args:
      meanwhile: called once while the first completions are being drawn.
    """
    count, rounds = run.settings.train.prompts, run.settings.train.dynamic_rounds
    drawings: list[Drawing] = []
    drawn: list[Group] = []

    def begin(number: int) -> Drawing:
        rows = batch_indices(run.settings.seed, cursor + number * count, size=len(run.train_data), count=count)
        return Drawing(run, published, run.train_data, rows, step=step, group=run.settings.sampling.group)

    following: Drawing | None = begin(0)
    meanwhile()
    for number in range(1, rounds + 1):
        drawing, following = following or begin(number - 1), None
        drawing.draw(rewards)
        drawings.append(drawing)
        if number < rounds and not drawing.judged:
            following = begin(number)
        drawn += drawing.rewarded()
        if sum(map(rewards_differ, drawn)) >= count:
            break
    groups = choose(drawn, count)
    if "greedy_reward" in asks(run.learner.objective.advantage):
        groups = _with_greedy(run, rewards, published, groups, step)
    return Drawn(
        groups=groups,
        every=drawn,
        waited=sum(drawing.waited for drawing in drawings),
        occupancy=float(np.mean([drawing.occupancy for drawing in drawings])),
    )


class Drawing:
    """A group of completions for each of a data set's rows, on their way.

    Args:
      step: what the keys derive from, beside the seed and the row.
      sampler: None draws from the whole distribution, as training does.
    """

    def __init__(
        self,
        run: Run,
        published: Params,
        data: Dataset,
        rows: Sequence[int],
        *,
        step: int | np.uint32,
        group: int,
        sampler: Sampler | None = None,
    ) -> None:
        sampling = run.settings.sampling
        self._run, self._rows, self._prompts, self._columns = run, rows, data.prompts(rows), data.columns(rows)
        self._tokens = encoded(run, self._prompts)
        self._texts = [[""] * group for _ in rows]
        self._order: list[tuple[int, int]] = []
        self._scoring: Scoring | None = None
        self._stages = Stages(
            run.learner.model,
            published,
            self._tokens,
            compiled_keys(run.settings.seed, step, jnp.asarray(rows, jnp.int32), group=group),
            max_tokens=sampling.max_tokens,
            eos_ids=run.tokenizer.eos_ids,
            sampler=sampler,
            check_every=sampling.check_every,
            rows=sampling.rows,
        )

    @property
    def occupancy(self) -> float:
        """The share of live tokens in all that was computed."""
        return self._stages.occupancy

    @property
    def judged(self) -> bool:
        """Whether `rewarded` would not wait."""
        return self._scoring.ready

    @property
    def waited(self) -> float:
        """Seconds that `rewarded` waited."""
        return self._scoring.waited

    def draw(self, rewards: Rewards | None = None) -> None:
        """Draws all completions to their ends; those that have ended go to the rewards while others are being drawn."""
        self._scoring = None if rewards is None else rewards.begin()
        for ended in self._stages:
            for prompt, sample in ended:
                tokens, mask = (x[prompt, sample] for x in (self._stages.rollout.tokens, self._stages.rollout.mask))
                self._texts[prompt][sample] = self._run.tokenizer.decode(tokens[mask].tolist())
            self._order += ended
            if self._scoring is not None:
                columns = {name: [values[p] for p, _ in ended] for name, values in self._columns.items()}
                texts = [self._texts[p][g] for p, g in ended]
                self._scoring.add([self._prompts[p] for p, _ in ended], texts, columns)

    def groups(self) -> list[Group]:
        """Returns the groups, without rewards."""
        return [
            Group(
                index=int(row),
                prompt=self._prompts[i],
                columns={name: values[i] for name, values in self._columns.items()},
                completions=self._texts[i],
                prompt_tokens=jax.tree.map(lambda x, i=i: x[i], self._tokens),
                rollout=jax.tree.map(lambda x, i=i: x[i], self._stages.rollout),
            )
            for i, row in enumerate(self._rows)
        ]

    def rewarded(self) -> list[Group]:
        """Returns the groups with their rewards, which may have to be awaited."""
        place = {at: i for i, at in enumerate(self._order)}
        scores = self._scoring.result().take([place[at] for at in sorted(place)])
        parts = scores.groups(len(self._texts[0]))
        return [dataclasses.replace(group, scores=part) for group, part in zip(self.groups(), parts, strict=True)]


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
    """Returns a group of `group` completions for each of the data set's `rows`, without rewards (see `Drawing`)."""
    drawing = Drawing(run, published, data, rows, step=step, group=group, sampler=sampler)
    drawing.draw()
    return drawing.groups()


def encoded(run: Run, prompts: Sequence) -> PromptBatch:
    """Returns the prompts' tokens, right-padded to the limit, as NumPy arrays."""
    tokens, mask = encode_prompts(prompts, run.tokenizer, length=run.settings.data.prompt_length)
    return PromptBatch(tokens=tokens, mask=mask)


def _with_greedy(run: Run, rewards: Rewards, published: Params, groups: list[Group], step: int) -> list[Group]:
    """Returns the groups with the reward of each prompt's greedy completion."""
    # As many copies as the mesh splits a group into: they are equal, and one counts.
    copies = run.group_devices
    rows = [group.index for group in groups]
    greedy = draw(run, published, run.train_data, rows, step=step, group=copies, sampler=Sampler(temperature=0.0))
    scores = [group.scores for group in rewarded(rewards, greedy)]
    values = [float(score.total[0]) if score.valid[0] else np.nan for score in scores]
    return [dataclasses.replace(group, greedy_reward=value) for group, value in zip(groups, values, strict=True)]

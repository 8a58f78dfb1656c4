"""The layouts of a run's batches, and the shapes of cells that its programs are compiled for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from grpo_jax.learn.layout import Layout
from grpo_jax.learn.learner import Learner
from grpo_jax.learn.packing import Room, Shape, pack
from grpo_jax.mesh.mesh import devices_along
from grpo_jax.run.group import Group
from grpo_jax.run.run import Run


class Layouts:
    """Layouts of batch after batch. A shape that has been used is used again while it is about as good as the best.

    So few programs are compiled. The shapes are part of what a checkpoint holds: a run that is continued cuts its
    batches as it would have without the interruption.

    Args:
      known: the shapes used so far, by what for, as `known` says them.

    Attributes:
      known: the same, after the batches of this object.
    """

    def __init__(self, run: Run, known: dict[str, Sequence[Sequence[int]]] | None = None) -> None:
        self._run = run
        self.known = {name: [Shape(*shape) for shape in shapes] for name, shapes in (known or {}).items()}

    def of(
        self,
        learner: Learner,
        lengths: np.ndarray,
        prompt_lengths: np.ndarray,
        *,
        use: str,
        order: np.ndarray | None = None,
    ) -> tuple[Layout, float]:
        """Returns the layout of a batch, and the share of padding in what is computed.

        Args:
          lengths: `[P, G]`, live tokens of the completions.
          prompt_lengths: `[P]`.
          use: `score`, `update` or `warmup`: each has its own shapes.
          order: the prompts of several minibatches; None is one of all.
        """
        rules, settings = learner.model.rules, self._run.settings
        room = Room(
            length=settings.sampling.max_tokens,
            prompt_length=settings.data.prompt_length,
            hidden=learner.model.hidden,
            micro_prompts=learner.updates.micro_prompts,
            parts=devices_along(self._run.mesh, rules.axes("prompt")),
            row_devices=devices_along(self._run.mesh, rules.axes("sample")),
        )
        known = self.known.setdefault(use, [])
        layout, shape, padding = pack(lengths, prompt_lengths, room, order=order, known=known)
        if shape not in known:
            known.append(shape)
        return layout, padding


def live_lengths(groups: Sequence[Group]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of completions that have a reward `[P, G]`, 0 for the others, and those of prompts `[P]`."""
    drawn = np.stack([group.rollout.mask.sum(-1) for group in groups])
    valid = np.stack([group.scores.valid & np.isfinite(group.scores.total) for group in groups])
    return np.where(valid, drawn, 0), np.array([group.prompt_tokens.mask.sum() for group in groups])


def step_layouts(
    layouts: Layouts, learner: Learner, groups: Sequence[Group], order: np.ndarray
) -> tuple[Layout, Layout, float]:
    """Returns the layouts in which a step's batch is scored and learnt from, and the share of padding in the latter."""
    lengths: tuple[Any, Any] = live_lengths(groups)
    if len(order) == 1:
        layout, padding = layouts.of(learner, *lengths, use="update")
        return layout, layout, padding
    scored, _ = layouts.of(learner, *lengths, use="score")
    return scored, *layouts.of(learner, *lengths, use="update", order=order)

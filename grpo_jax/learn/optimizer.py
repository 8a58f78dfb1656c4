"""AdamW with a schedule and a bound on the gradient's norm, from optax."""

from __future__ import annotations

from typing import Any

import jax
import optax

from grpo_jax.errors import import_named
from grpo_jax.learn.settings import OptimizerSettings
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import weight_kinds
from grpo_jax.models.lora import lora_axes
from grpo_jax.models.settings import Lora


def make_schedule(*, learning_rate: float, warmup_steps: int, schedule: str, updates: int) -> optax.Schedule:
    """Returns the learning rate of each update: a linear rise, then constant, or to 0 by cosine or line.

    Args:
      updates: optimizer updates of the whole run; `cosine` and `linear` reach 0 there.

    Raises:
      ValueError: an unknown schedule.
    """
    rest = max(updates - warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(learning_rate),
        "cosine": optax.cosine_decay_schedule(learning_rate, rest),
        "linear": optax.linear_schedule(learning_rate, 0.0, rest),
    }
    if schedule not in after:
        raise ValueError(f"schedule: {schedule!r}; expected one of {sorted(after)}")
    if warmup_steps == 0:
        return after[schedule]
    # The first update already moves: it has learning rate learning_rate / warmup_steps.
    rise = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, max(warmup_steps - 1, 1))
    return optax.join_schedules([rise, after[schedule]], [warmup_steps])


def make_optimizer(
    settings: OptimizerSettings, schedule: optax.Schedule, *, matrices: Any = None
) -> optax.GradientTransformation:
    """Returns AdamW (arXiv:1711.05101) or the user's transformation, behind a bound on the gradient's global norm.

    Args:
      settings: of the optimizer; its learning rates are those of `schedule`.
      schedule: the learning rate of each update.
      matrices: a tree of the parameters' structure, True on those that decay with `decay="matrices"`
        (`policy_matrices`, `critic_matrices`).

    Raises:
      ValueError: `transformation` cannot be imported or makes no optax transformation, or matrices decay and nobody
        says which parameters they are.
    """
    if settings.transformation is not None:
        moved = _own(settings.transformation, schedule)
    else:
        masked = settings.weight_decay > 0 and settings.decay == "matrices"
        if masked and matrices is None:
            raise ValueError("matrices: None, but optimizer.decay is 'matrices'; say which parameters are")
        moved = optax.adamw(
            schedule,
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            # Without decay there is nothing to mask, and the optimizer's state has one structure.
            mask=matrices if masked else None,
            mu_dtype=settings.moment_dtype,
        )
    if settings.max_grad_norm is None:
        return moved
    return optax.chain(optax.clip_by_global_norm(settings.max_grad_norm), moved)


def policy_matrices(model: DecoderConfig, lora: Lora | None = None) -> Any:
    """Returns, for each trained parameter, whether it is a matrix: by its kind, not by its rank.

    Norms and biases are stacked over layers and have as many dimensions as some matrices. Adapters are matrices.
    """
    if lora is not None:
        return jax.tree.map(lambda _: True, lora_axes(model, lora), is_leaf=lambda leaf: isinstance(leaf, tuple))
    return jax.tree.map(lambda kind: kind == "matrix", weight_kinds(model))


def critic_matrices(model: DecoderConfig) -> Any:
    """Returns the same for the critic's parameters; its output is a matrix of one column."""
    return {"decoder": policy_matrices(model), "output": True}


def _own(target: str, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns what `package.module:function` makes of a schedule."""
    try:
        made = import_named(target)(schedule)
    except ValueError as error:
        raise ValueError(f"optimizer.transformation: {error}") from error
    if not isinstance(made, optax.GradientTransformation):
        raise ValueError(
            f"optimizer.transformation: {target!r} returns a {type(made).__name__}; expected an "
            "optax.GradientTransformation"
        )
    return made

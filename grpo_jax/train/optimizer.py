"""AdamW with a schedule and a bound on the gradient's norm, from optax."""

from __future__ import annotations

import optax


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
    schedule: optax.Schedule | float,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    moment_dtype: str = "float32",
    max_grad_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """Returns AdamW (arXiv:1711.05101), after scaling gradients down to a global norm of `max_grad_norm`.

    Args:
      moment_dtype: of the stored mean of gradients: bfloat16 saves two of the twelve bytes that a parameter, its
        float32 master included, takes. The mean of squares needs more digits than bfloat16 has.
    """
    adamw = optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mu_dtype=moment_dtype)
    if max_grad_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), adamw)

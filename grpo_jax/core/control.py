"""Coefficients that follow a measurement: what a run carries from step to step besides its parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax.core.checks import require_at_least, require_same_shape
from grpo_jax.core.masking import as_float


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveKl:
    """A KL coefficient that rises while the measured KL is above its target, and falls below it.

        coef' = coef (1 + clip(kl / target - 1, -limit, limit) samples / horizon)

    Attributes:
      initial: the coefficient at the first step.
      target: the KL per completion to hold, in nats.
      horizon: completions over which an error of the full limit changes the coefficient by that share.
      limit: largest relative error that counts.

    Raises:
      ValueError: a field is negative, or `target` or `horizon` is 0.

    Reference: Ziegler et al., arXiv:1909.08593, section 2.2.

    >>> coef = AdaptiveKl(initial=0.2, target=6.0, horizon=1000.0).update(jnp.array(0.2), jnp.array(60.0), 100)
    >>> f"{coef:.4f}"
    '0.2040'
    """

    initial: float
    target: float
    horizon: float = 10_000.0
    limit: float = 0.2

    def __post_init__(self) -> None:
        for name in ("initial", "target", "horizon", "limit"):
            require_at_least(name, getattr(self, name), 0.0)
        for name in ("target", "horizon"):
            if getattr(self, name) == 0.0:
                raise ValueError(f"{name} must be above 0, got 0")

    def update(self, coef: Float[Array, ""], kl: Float[Array, ""], samples: int) -> Float[Array, ""]:
        """Returns the coefficient after a step.

        Args:
          coef: the coefficient of the step.
          kl: the measured KL, in the unit of `target`.
          samples: completions that it was measured on.
        """
        error = jnp.clip(kl / self.target - 1.0, -self.limit, self.limit)
        return as_float(coef * (1.0 + error * samples / self.horizon))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveEntropy:
    """An entropy coefficient that rises by steps while the entropy is below its target, and falls above it.

        c' = clip(c + step, 0, highest) if H < target, else clip(c - step, 0, highest)
        effective coefficient = c if H <= target, else 0

    Where H equals the target, the readings differ: here c falls, in TRL it rises. The upper bound is TRL's too.

    Attributes:
      target: entropy per token to hold, in nats.
      step: what one step of training adds or takes away.
      initial: c at the first step.
      highest: upper bound on c.

    Raises:
      ValueError: a field is negative.

    Reference: Skywork-OR1, arXiv:2505.22312, section 3.2.5 (adaptive entropy control).

    >>> control = AdaptiveEntropy(target=0.2)
    >>> [f"{control.update(jnp.array(0.01), jnp.array(entropy)):.4f}" for entropy in (0.1, 0.3)]
    ['0.0150', '0.0050']
    """

    target: float
    step: float = 0.005
    initial: float = 0.0
    highest: float = 1.0

    def __post_init__(self) -> None:
        for name in ("target", "step", "initial", "highest"):
            require_at_least(name, getattr(self, name), 0.0)

    def update(self, coef: Float[Array, ""], entropy: Float[Array, ""]) -> Float[Array, ""]:
        """Returns c after a step whose tokens had the mean `entropy`."""
        moved = jnp.where(entropy < self.target, coef + self.step, coef - self.step)
        return as_float(jnp.clip(moved, 0.0, self.highest))

    def effective(self, coef: Float[Array, ""], entropy: Float[Array, ""]) -> Float[Array, ""]:
        """Returns the coefficient of a step whose tokens have the mean `entropy`."""
        return as_float(jnp.where(entropy <= self.target, coef, 0.0))


def initial_value(coef: float | AdaptiveKl | AdaptiveEntropy) -> float:
    """Returns the number that a coefficient begins with.

    >>> initial_value(0.04), initial_value(AdaptiveKl(initial=0.2, target=6.0))
    (0.04, 0.2)
    """
    return coef if isinstance(coef, int | float) else coef.initial


def mixed_reference(reference: Any, policy: Any, *, mix: float) -> Any:
    """Returns the parameters of the reference after it has moved towards the policy.

        reference' = mix policy + (1 - mix) reference

    The mixture is taken in float32 or wider and rounded once to the dtype of the reference. A mix of 1 replaces the
    reference by the policy.

    Args:
      reference: a tree of arrays.
      policy: a tree of the same structure and shapes.
      mix: share of the policy, above 0 and at most 1.

    Raises:
      ValueError: `mix` is out of range, or the trees differ in structure or shapes.

    Reference: TR-DPO, arXiv:2404.09656, equations of the soft (mix < 1) and the hard update (mix = 1); the share is
    TRL's ref_model_mixup_alpha.

    >>> mixed_reference({"w": jnp.array([0.0, 1.0])}, {"w": jnp.array([1.0, 1.0])}, mix=0.25)["w"].tolist()
    [0.25, 1.0]
    """
    if not 0.0 < mix <= 1.0:
        raise ValueError(f"mix must be a number above 0 and at most 1, got {mix}")

    structures: list[Any] = [jax.tree.structure(tree) for tree in (reference, policy)]
    if structures[0] != structures[1]:
        raise ValueError(f"reference and policy differ in structure: {structures[0]} and {structures[1]}")

    def mixed(path: tuple[Any, ...], old: Array, new: Array) -> Array:
        where = jax.tree_util.keystr(path)
        require_same_shape(f"policy{where}", new, f"reference{where}", old)
        return (mix * as_float(new) + (1.0 - mix) * as_float(old)).astype(old.dtype)

    return jax.tree_util.tree_map_with_path(mixed, reference, policy)

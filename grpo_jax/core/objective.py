"""The objective: the paper's terms as the fields of one value, and the loss that they compose to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.advantage import GroupNormalised, ProcessNormalised
from grpo_jax.core.aggregate import sequence_mean, token_mean
from grpo_jax.core.checks import require_at_least, require_axes, require_mask, require_same_shape
from grpo_jax.core.kl import FullVocabulary, TokenKl, k3
from grpo_jax.core.masking import sanitise
from grpo_jax.core.naming import PrintsByValue, show
from grpo_jax.core.ratio import per_token
from grpo_jax.core.surrogate import PpoClip
from grpo_jax.types import WeightedSum

Tokens = Float[Array, "*b T"]
Mask = Bool[Array, "*b T"]

GroupAdvantage = Callable[[Float[Array, "*b G"], Bool[Array, "*b G"]], Float[Array, "*b G"]]
Ratio = Callable[[Tokens, Mask], Tokens]
Surrogate = Callable[[Tokens, Tokens, Tokens], tuple[Tokens, Mask]]
Aggregate = Callable[[Tokens, Mask], WeightedSum]


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Objective(PrintsByValue):
    """What is optimised, term by term. It hashes, compares and prints by value, so equal ones do not recompile.

        loss = aggregate( surrogate(ratio(log pi - log pi_old), log pi, A) + kl_coef KL - entropy_coef H )

    An ablation replaces one field: `dataclasses.replace(grpo(), aggregate=token_mean)`.

    Attributes:
      advantage: `(reward[..., G], valid[..., G]) -> [..., G]`, or `ProcessNormalised`; None where the batch brings
        its advantages, as in supervised fine-tuning.
      ratio: `(log_ratio[..., T], mask) -> log_ratio[..., T]`.
      surrogate: `(log_ratio, logp, advantage) -> (loss[..., T], clipped[..., T])`.
      kl: `(logp, ref_logp) -> kl[..., T]`, or a `FullVocabulary` divergence.
      kl_coef: weight of the KL term in the loss.
      reward_kl_coef: weight of the KL penalty in the reward (`reward_with_kl`). One penalty has one place: at most
        one of the two is not zero.
      entropy_coef: weight of the entropy bonus.
      aggregate: `(x[..., T], mask) -> WeightedSum`.

    Raises:
      ValueError: a coefficient is negative; both KL coefficients are set; `reward_kl_coef` is set with process
        supervision, whose rewards are normalised step by step and have no place for a penalty per token, or
        without any `advantage` that could read it.

    >>> Objective(surrogate=PpoClip(high=0.28), aggregate=token_mean)  # doctest: +NORMALIZE_WHITESPACE
    Objective(advantage=GroupNormalised(ddof=1, eps=1e-06), ratio=per_token,
      surrogate=PpoClip(low=0.2, high=0.28, dual=None), kl=k3, kl_coef=0.0, reward_kl_coef=0.0, entropy_coef=0.0,
      aggregate=token_mean)
    """

    advantage: GroupAdvantage | ProcessNormalised | None = dataclasses.field(default_factory=GroupNormalised)
    ratio: Ratio = per_token
    surrogate: Surrogate = dataclasses.field(default_factory=PpoClip)
    kl: TokenKl | FullVocabulary = k3
    kl_coef: float = 0.0
    reward_kl_coef: float = 0.0
    entropy_coef: float = 0.0
    aggregate: Aggregate = sequence_mean

    def __post_init__(self) -> None:
        for name in ("kl_coef", "reward_kl_coef", "entropy_coef"):
            require_at_least(name, getattr(self, name), 0.0)
        if self.kl_coef and self.reward_kl_coef:
            raise ValueError(
                f"kl_coef={self.kl_coef} and reward_kl_coef={self.reward_kl_coef} penalise the same divergence twice; "
                "set one of them to 0"
            )
        if self.reward_kl_coef and (self.process or self.advantage is None):
            raise ValueError(
                f"reward_kl_coef={self.reward_kl_coef} needs an advantage that reads one reward per completion, got "
                f"advantage={show(self.advantage)}; use kl_coef instead"
            )

    @property
    def needs_reference(self) -> bool:
        """Whether a KL term is used, in the loss or in the reward."""
        return self.kl_coef != 0 or self.reward_kl_coef != 0

    @property
    def needs_entropy(self) -> bool:
        """Whether the loss contains the entropy."""
        return self.entropy_coef != 0

    @property
    def full_vocabulary(self) -> bool:
        """Whether a KL term is used that the log-probabilities of the drawn tokens do not determine."""
        return self.needs_reference and isinstance(self.kl, FullVocabulary)

    @property
    def process(self) -> bool:
        """Whether the advantage reads the rewards of steps instead of one reward per completion."""
        return isinstance(self.advantage, ProcessNormalised)


def policy_loss(
    objective: Objective,
    *,
    logp: Tokens,
    mask: Mask,
    advantage: Tokens,
    old_logp: Tokens | None = None,
    ref_logp: Tokens | None = None,
    divergence: Tokens | None = None,
    entropy: Tokens | None = None,
) -> tuple[WeightedSum, dict[str, WeightedSum]]:
    """Returns the loss, not yet divided, and its metrics.

        l_t = surrogate(ratio(logp - old_logp), logp, A)_t + kl_coef KL_t - entropy_coef H_t
        loss = aggregate(l)

    Gradient: through `logp`, `entropy` and `divergence`. `old_logp`, `ref_logp` and `advantage` are constants,
    detached here and nowhere else; metrics carry no gradient. Padding receives a gradient of exactly 0.

    Args:
      objective: the terms.
      logp: log pi of the drawn tokens, at the temperature they were drawn at.
      mask: True on scored tokens; everything else may hold anything elsewhere.
      advantage: one number for each token.
      old_logp: log pi_old of the drawn tokens; None when the policy that sampled is the one that learns, so that
        the ratio is 1 and only its gradient matters.
      ref_logp: log pi_ref of the drawn tokens, for an estimator. With `kl_coef` 0 it is only a metric.
      divergence: the value of a `FullVocabulary` divergence at each token. With `kl_coef` 0 it is only a metric.
      entropy: entropy of the policy at each token. With `entropy_coef` 0 it is only a metric.

    Returns:
      The loss, and metrics. `loss_policy` is the surrogate alone under the objective's aggregator; means over
      tokens are `ratio`, `clip_fraction`, `approx_kl` (k3 of pi_old from pi) and, where they were given, `kl` and
      `entropy`.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: shapes differ, a term that the objective needs is missing, or the KL's input is of the wrong kind.

    >>> tokens = dict(logp=jnp.array([[-1.0], [-1.0]]), mask=jnp.ones((2, 1), bool))
    >>> loss, metrics = policy_loss(Objective(), advantage=jnp.array([[1.0], [-1.0]]), **tokens)
    >>> loss.mean(), metrics["ratio"].mean()
    (Array(0., dtype=float32), Array(1., dtype=float32))
    """
    _check_inputs(
        objective,
        logp,
        mask,
        {
            "advantage": advantage,
            "old_logp": old_logp,
            "ref_logp": ref_logp,
            "divergence": divergence,
            "entropy": entropy,
        },
    )
    constant = jax.lax.stop_gradient
    logp = sanitise(logp, mask)
    advantage = constant(sanitise(advantage, mask))
    old_logp = constant(logp if old_logp is None else sanitise(old_logp, mask))

    log_ratio = objective.ratio(logp - old_logp, mask)
    surrogate, clipped = objective.surrogate(log_ratio, logp, advantage)
    loss = surrogate
    means = {"ratio": jnp.exp(log_ratio), "clip_fraction": clipped, "approx_kl": k3(old_logp, logp)}

    if ref_logp is not None and not isinstance(objective.kl, FullVocabulary):
        means["kl"] = objective.kl(logp, constant(sanitise(ref_logp, mask)))
    elif divergence is not None:
        means["kl"] = sanitise(divergence, mask)
    if objective.kl_coef:
        loss = loss + objective.kl_coef * means["kl"]

    if entropy is not None:
        means["entropy"] = sanitise(entropy, mask)
    if objective.entropy_coef:
        loss = loss - objective.entropy_coef * means["entropy"]

    metrics = {name: token_mean(value, mask) for name, value in means.items()}
    metrics["loss_policy"] = objective.aggregate(surrogate, mask)
    return objective.aggregate(loss, mask), constant(metrics)


def _check_inputs(objective: Objective, logp: Tokens, mask: Mask, others: dict[str, Any]) -> None:
    """Raises unless all shapes agree and the objective's KL and entropy terms have what they need."""
    require_axes("logp", logp, "T")
    require_mask("mask", mask, "logp", logp)
    for name, value in others.items():
        if value is not None:
            require_same_shape(name, value, "logp", logp)
    full = isinstance(objective.kl, FullVocabulary)
    wanted, other = ("divergence", "ref_logp") if full else ("ref_logp", "divergence")
    if others[other] is not None:
        raise ValueError(f"kl={show(objective.kl)} reads {wanted}, but {other} was given")
    if objective.kl_coef and others[wanted] is None:
        raise ValueError(f"kl_coef={objective.kl_coef} with kl={show(objective.kl)} needs {wanted}")
    if objective.entropy_coef and others["entropy"] is None:
        raise ValueError(f"entropy_coef={objective.entropy_coef} needs entropy")

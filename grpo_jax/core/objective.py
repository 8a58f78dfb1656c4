"""The objective: the paper's terms as the fields of one value, and the loss that they compose to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax.core.advantage import GroupNormalised
from grpo_jax.core.aggregate import sequence_mean, token_mean
from grpo_jax.core.checks import require_at_least, require_axes, require_mask, require_same_shape
from grpo_jax.core.control import AdaptiveEntropy, AdaptiveKl, initial_value
from grpo_jax.core.kl import k3
from grpo_jax.core.masking import sanitise
from grpo_jax.core.naming import PrintsByValue, show
from grpo_jax.core.ratio import per_token
from grpo_jax.core.slots import (
    Advantage,
    Aggregate,
    Correction,
    Kl,
    Mask,
    Ratio,
    Surrogate,
    Tokens,
    Value,
    asks,
    fill,
    require_offered,
)
from grpo_jax.core.surrogate import PpoClip
from grpo_jax.types import WeightedSum

_LOSS_COEFS = ("kl_coef", "entropy_coef")


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Objective(PrintsByValue):
    """What is optimised, term by term. It hashes, compares and prints by value, so equal ones do not recompile.

        loss = aggregate( w surrogate(ratio(log pi - log pi_old), log pi, A) + kl_coef KL - entropy_coef H )

    An ablation replaces one field: `dataclasses.replace(grpo(), aggregate=token_mean)`. The contract of each slot, with
    all that a component may ask for, is the `Protocol` that its field is annotated with (`core/slots.py`).

    Attributes:
      advantage: `(reward[..., G], valid[..., G]) -> [..., G]` or `[..., G, T]`; None where the batch brings its
        advantages, as in supervised fine-tuning.
      ratio: `(log_ratio[..., T], mask) -> log_ratio[..., T]`.
      surrogate: `(log_ratio, logp, advantage) -> (loss[..., T], clipped[..., T])`.
      correction: `(log_gap, mask) -> (weight[..., T], keep[..., T])` for a sampler that differs from the trainer; the
        weight w is 1 without one.
      kl: `(logp, ref_logp) -> kl[..., T]`.
      kl_coef: weight of the KL term in the loss, fixed or adaptive.
      reward_kl_coef: weight of the KL penalty in the reward (`reward_with_kl`). One penalty has one place: at most
        one of the two is not zero.
      entropy_coef: weight of the entropy bonus, fixed or adaptive.
      aggregate: `(x[..., T], mask) -> WeightedSum`.
      value: `(value, old_value, returns) -> (loss[..., T], clipped[..., T])`, the critic's loss, where the advantage
        asks for `value`.

    Raises:
      ValueError: a component asks for a name that its slot does not offer; a coefficient is negative; both KL
        coefficients are set; `reward_kl_coef` is set with an advantage that reads the rewards of steps or of single
        terms, which have no place for a penalty, or without any `advantage`; a surrogate asks for `selected` and has no
        `select`; a KL asks for `divergence` and does not say which; an adaptive `reward_kl_coef` follows a KL
        that reads the whole vocabulary; an advantage asks for a critic's `value` and there is no loss for the critic,
        or the reverse.

    >>> Objective(surrogate=PpoClip(high=0.28), aggregate=token_mean)  # doctest: +NORMALIZE_WHITESPACE
    Objective(advantage=GroupNormalised(ddof=1, eps=1e-06), ratio=per_token,
      surrogate=PpoClip(low=0.2, high=0.28, dual=None), correction=None, kl=k3, kl_coef=0.0, reward_kl_coef=0.0,
      entropy_coef=0.0, aggregate=token_mean, value=None)
    """

    advantage: Advantage | None = dataclasses.field(default_factory=GroupNormalised)
    ratio: Ratio = per_token
    surrogate: Surrogate = dataclasses.field(default_factory=PpoClip)
    correction: Correction | None = None
    kl: Kl = k3
    kl_coef: float | AdaptiveKl = 0.0
    reward_kl_coef: float | AdaptiveKl = 0.0
    entropy_coef: float | AdaptiveEntropy = 0.0
    aggregate: Aggregate = sequence_mean
    value: Value | None = None

    def __post_init__(self) -> None:
        for slot in ("advantage", "ratio", "surrogate", "correction", "kl", "aggregate", "value"):
            require_offered(slot, getattr(self, slot))
        select = getattr(self.surrogate, "select", None)
        require_offered("surrogate.select", select)
        if "selected" in asks(self.surrogate) and select is None:
            raise ValueError(
                f"surrogate={show(self.surrogate)} asks for selected, but has no method `select` that picks the tokens "
                "out of a whole batch"
            )
        for name in ("kl_coef", "reward_kl_coef", "entropy_coef"):
            coef = getattr(self, name)
            if isinstance(coef, int | float):
                require_at_least(name, coef, 0.0)
        if self.kl_coef and self.reward_kl_coef:
            raise ValueError(
                f"kl_coef={self.kl_coef} and reward_kl_coef={self.reward_kl_coef} penalise the same divergence twice; "
                "set one of them to 0"
            )
        reads = asks(self.advantage)
        if self.reward_kl_coef and (self.advantage is None or {"step_reward", "term_reward"} & set(reads)):
            raise ValueError(
                f"reward_kl_coef={self.reward_kl_coef} needs an advantage that reads one reward per completion, got "
                f"advantage={show(self.advantage)}; use kl_coef instead"
            )
        if _measures_vocabulary(self.kl) and not callable(getattr(self.kl, "divergence", None)):
            raise ValueError(
                f"kl={show(self.kl)} asks for divergence, but its attribute `divergence` is no function of the whole "
                "vocabulary; write kl=FullVocabulary(my_divergence)"
            )
        if _measures_vocabulary(self.kl) and isinstance(self.reward_kl_coef, AdaptiveKl):
            raise ValueError(
                f"reward_kl_coef={self.reward_kl_coef} follows the KL of the drawn tokens, which kl={show(self.kl)} "
                "does not measure; set kl=k1"
            )
        if self.needs_critic != (self.value is not None):
            raise ValueError(
                f"advantage={show(self.advantage)} {'asks' if self.needs_critic else 'does not ask'} for a critic's "
                f"value, but the critic's loss is value={self.value}; give both or neither"
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
    def needs_critic(self) -> bool:
        """Whether the advantage compares with what a critic expects."""
        return "value" in asks(self.advantage)

    @property
    def full_vocabulary(self) -> bool:
        """Whether a KL term is used that the log-probabilities of the drawn tokens do not determine."""
        return self.needs_reference and _measures_vocabulary(self.kl)

    @property
    def controls(self) -> dict[str, AdaptiveKl | AdaptiveEntropy]:
        """The coefficients that adapt during a run, by field."""
        fields = {name: getattr(self, name) for name in ("kl_coef", "reward_kl_coef", "entropy_coef")}
        return {name: value for name, value in fields.items() if isinstance(value, AdaptiveKl | AdaptiveEntropy)}


def _measures_vocabulary(kl: Kl) -> bool:
    """Returns whether a KL term reads the whole vocabulary, in place of the reference's log-probabilities."""
    return "divergence" in asks(kl)


def policy_loss(
    objective: Objective,
    *,
    logp: Tokens,
    mask: Mask,
    advantage: Tokens,
    old_logp: Tokens | None = None,
    sampler_logp: Tokens | None = None,
    ref_logp: Tokens | None = None,
    divergence: Tokens | None = None,
    entropy: Tokens | None = None,
    selected: Mask | None = None,
    coefs: Mapping[str, Float[Array, ""]] | None = None,
) -> tuple[WeightedSum, dict[str, WeightedSum]]:
    """Returns the loss of a batch of completions, not yet divided, and its metrics.

    Gradient: flows through `logp` and, where the objective uses them, `entropy` and `divergence`. Everything else,
    and every metric, is detached here and nowhere else.

    Args:
      objective: the terms.
      logp: log-probabilities under the policy that learns, at the sampler's temperature.
      mask: True on scored tokens. Wherever it is False, the other arrays may hold anything.
      advantage: advantage of each token.
      old_logp: log-probabilities under the policy that sampled. Leave it out when there is one update per rollout:
        then it is `logp` itself.
      sampler_logp: what the sampler drew from; a `correction` compares it with `old_logp`.
      ref_logp: log-probabilities under the reference, for a KL estimator. With `kl_coef` 0 it is only a metric.
      divergence: divergence from the reference over the whole vocabulary, for a KL that asks for it, as `exact` does
        (see `token_logprobs`). With `kl_coef` 0 it is only a metric.
      entropy: entropy of the policy at each token. With `entropy_coef` 0 it is only a metric.
      selected: what the surrogate's `select` picked out of the whole batch, where it has one.
      coefs: present values of the coefficients that adapt; by default the values that they start with.

    Returns:
      The loss, and metrics. `loss_policy` is the surrogate alone under the objective's aggregator; means over
      tokens are `ratio`, `clip_fraction`, `approx_kl` (k3 of pi_old from pi) and, where they were given, `kl` and
      `entropy`; with a correction, its mean `weight` and the fraction of tokens `kept`.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: shapes differ, a term that the objective needs is missing, or the KL's input is of the wrong kind.

    >>> tokens = dict(logp=jnp.array([[-1.0], [-1.0]]), mask=jnp.ones((2, 1), bool))
    >>> loss, metrics = policy_loss(Objective(), advantage=jnp.array([[1.0], [-1.0]]), **tokens)
    >>> loss.mean(), metrics["ratio"].mean()
    (Array(0., dtype=float32), Array(1., dtype=float32))
    """
    tokens = {"advantage": advantage, "old_logp": old_logp, "sampler_logp": sampler_logp, "ref_logp": ref_logp}
    tokens |= {"divergence": divergence, "entropy": entropy}
    _check_inputs(objective, logp, mask, tokens, selected)
    constant = jax.lax.stop_gradient
    logp = sanitise(logp, mask)
    advantage = constant(sanitise(advantage, mask))
    old_logp = constant(logp if old_logp is None else sanitise(old_logp, mask))
    coef = {name: (coefs or {}).get(name, initial_value(getattr(objective, name))) for name in _LOSS_COEFS}
    metrics: dict[str, WeightedSum] = {}

    weight: Tokens | None = None
    if objective.correction is not None and sampler_logp is not None:
        weight, keep = _corrected(objective.correction, logp, old_logp, sanitise(sampler_logp, mask), advantage, mask)
        metrics |= {"weight": token_mean(weight, mask), "kept": token_mean(keep, mask)}
        mask = mask & keep

    log_ratio = objective.ratio(logp - old_logp, mask)
    extra = fill("surrogate", objective.surrogate, {"mask": mask, "old_logp": old_logp, "selected": selected})
    surrogate, clipped = objective.surrogate(log_ratio, logp, advantage, **extra)
    if weight is not None:
        surrogate = weight * surrogate
    loss = surrogate
    means = {"ratio": jnp.exp(log_ratio), "clip_fraction": clipped, "approx_kl": k3(old_logp, logp)}

    if ref_logp is not None or divergence is not None:
        named: dict[str, Tokens | None] = {
            "mask": mask,
            "log_ratio": logp - old_logp,
            "importance_log_ratio": log_ratio,
            "divergence": None if divergence is None else sanitise(divergence, mask),
        }
        ref_logp = None if ref_logp is None else constant(sanitise(ref_logp, mask))
        means["kl"] = objective.kl(logp, ref_logp, **fill("kl", objective.kl, named))
    if objective.kl_coef:
        loss = loss + coef["kl_coef"] * means["kl"]

    if entropy is not None:
        means["entropy"] = sanitise(entropy, mask)
    if objective.entropy_coef:
        loss = loss - coef["entropy_coef"] * means["entropy"]

    metrics |= {name: token_mean(value, mask) for name, value in means.items()}
    metrics["loss_policy"] = objective.aggregate(surrogate, mask)
    return objective.aggregate(loss, mask), constant(metrics)


def _corrected(
    correction: Correction, logp: Tokens, old_logp: Tokens, sampler_logp: Tokens, advantage: Tokens, mask: Mask
) -> tuple[Tokens, Mask]:
    """Returns the constant weight of each token, and which tokens a correction keeps."""
    constant = jax.lax.stop_gradient
    named = constant({"logp": logp, "sampler_logp": sampler_logp, "advantage": advantage})
    weight, keep = correction(old_logp - sampler_logp, mask, **fill("correction", correction, named))
    return constant(weight), keep


def _check_inputs(
    objective: Objective, logp: Tokens, mask: Mask, others: dict[str, Any], selected: Mask | None
) -> None:
    """Raises unless all shapes agree and the objective's terms have what they need."""
    require_axes("logp", logp, "T")
    require_mask("mask", mask, "logp", logp)
    for name, value in others.items():
        if value is not None:
            require_same_shape(name, value, "logp", logp)
    if selected is not None:
        require_mask("selected", selected, "logp", logp)
    elif "selected" in asks(objective.surrogate):
        read = ", ".join(f"{name}=" for name in asks(getattr(objective.surrogate, "select", None)))
        raise ValueError(
            f"surrogate={show(objective.surrogate)} asks for selected, which is not given: pass "
            f"selected=objective.surrogate.select({read}), called once on the whole batch before it is cut into "
            "minibatches or micro-batches, because it compares all tokens"
        )
    wanted, other = ("ref_logp", "divergence")
    if _measures_vocabulary(objective.kl):
        wanted, other = other, wanted
    if others[other] is not None:
        raise ValueError(f"kl={show(objective.kl)} reads {wanted}, but {other} was given")
    if objective.kl_coef and others[wanted] is None:
        raise ValueError(f"kl_coef={objective.kl_coef} with kl={show(objective.kl)} needs {wanted}")
    if objective.entropy_coef and others["entropy"] is None:
        raise ValueError(f"entropy_coef={objective.entropy_coef} needs entropy")
    if objective.correction is not None and others["sampler_logp"] is None:
        raise ValueError(f"correction={show(objective.correction)} needs sampler_logp")

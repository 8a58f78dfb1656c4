"""Group Robust Preference Optimization: the policy that is best for the group of people it serves worst.

    min over theta, max over alpha in the simplex, of sum_g alpha_g L_g(theta)          g = 1 .. K

L_g is the mean loss of the pairs of group g: with `Dpo` this is GR-DPO, with `Ipo` GR-IPO. "Group" means the origin of
a pair here (who labelled it), not the completions of a prompt.

One optimizer step, in this order (`GroupRobust.update`, then `robust_loss` with what it returned):

    1. alpha' = exponentiated_gradient(alpha, L(theta))       the weights first, from detached losses
    2. theta' = theta - lr * d/dtheta sum_g alpha'_g L_g      the policy with the new weights

Published readings differ: the bandit code that the authors released takes its gradient with the weights of before in
the variant that goes pair by pair.

With log-linear policies pi_theta(y|x) ~ exp(theta . phi(x, y)) and a reference of the same form, normalisers cancel in
the margin: h_i = (theta - theta_ref) . d_i with d_i = phi(x_i, y_w) - phi(x_i, y_l). Under fixed weights, GR-IPO is
then least squares, sum_i w_i (d_i . (theta - theta_ref) - 1/(2 beta))^2 with w_i = alpha_g(i) / n_g(i), and its
gradient vanishes at

    theta* = theta_ref + (D^T W D)^-1 D^T W 1 / (2 beta)

Reference: Ramesh et al., arXiv:2405.20304, equation 6, algorithm 1 and section 4 (whose GRPO is not DeepSeekMath's).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real

from grpo_jax.core.checks import require_at_least, require_axes, require_integers, require_mask, require_same_shape
from grpo_jax.core.masking import as_float, sanitise
from grpo_jax.types import WeightedSum


def group_losses(
    loss: Float[Array, "*b"], group: Int[Array, "*b"], scored: Bool[Array, "*b"], *, groups: int
) -> WeightedSum:
    """Returns the mean loss of each group, not yet divided: its totals and its weights have the shape [K].

        total_g = sum of the losses of the scored pairs of group g          weight_g = n_g, their number

    Micro-batches add up; `.mean()` gives L_g, and 0 for a group without a pair.

    Gradient: of total_g, 1 on each scored pair of group g.

    Args:
      loss: the loss of each pair (`pair_losses`); what is not scored may hold anything.
      group: the group of each pair, in [0, K). A pair whose number is outside belongs to no group and is left out.
      scored: True on the pairs that count (`scored_pairs`).
      groups: K.

    Raises:
      TypeError: `scored` is not boolean, or `group` holds no integers.
      ValueError: the shapes differ, or K is below 1.

    >>> sums = group_losses(jnp.array([1.0, 3.0, 5.0]), jnp.array([0, 0, 2]), jnp.ones(3, bool), groups=3)
    >>> sums.mean().tolist(), sums.weight.tolist()
    ([2.0, 0.0, 5.0], [2.0, 0.0, 1.0])
    """
    _require_pairs(loss, group, scored)
    if groups < 1:
        raise ValueError(f"groups must be at least 1, got {groups}")
    member = (group.reshape(-1, 1) == jnp.arange(groups)) & scored.reshape(-1, 1)
    total = jnp.sum(jnp.where(member, sanitise(loss, scored).reshape(-1, 1), 0.0), axis=0)
    return WeightedSum(total, jnp.sum(member, axis=0).astype(total.dtype))


def exponentiated_gradient(
    weights: Float[Array, " K"], losses: Float[Array, " K"], *, step: float, present: Bool[Array, " K"] | None = None
) -> Float[Array, " K"]:
    """Returns the weights of the groups after one step of mirror ascent on the simplex.

        alpha'_g = alpha_g exp(step L_g) / sum_k alpha_k exp(step L_k)

    Computed in log space, so that no loss overflows; a weight of 0 stays 0. A group without data in the batch is
    treated as algorithm 1 treats a group that was not drawn: its factor is 1, and only the normalisation moves it.

    Gradient: none; weights and losses are detached, as the policy's step holds alpha fixed.

    Args:
      weights: alpha, on the simplex.
      losses: L_g. Means of the batch, or with the factor N / n_g the paper's one-sample estimate of them.
      step: step size of the ascent, at least 0.
      present: True on groups with data; None if all have.

    Raises:
      TypeError: `present` is not boolean.
      ValueError: the shapes differ, there is not one axis, or `step` is negative.

    Reference: arXiv:2405.20304, algorithm 1.

    >>> weights = exponentiated_gradient(jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0]), step=jnp.log(3.0).item())
    >>> [round(w, 4) for w in weights.tolist()]
    [0.75, 0.25]
    """
    _require_groups("weights", weights)
    require_same_shape("losses", losses, "weights", weights)
    require_at_least("step", step, 0.0)
    gain = step * as_float(losses)
    if present is not None:
        require_mask("present", present, "weights", weights)
        gain = jnp.where(present, gain, 0.0)
    # Differences of gains are exact, sums with log alpha are not: the largest gain goes first.
    gain = gain - jnp.max(gain, where=as_float(weights) > 0, initial=-jnp.inf)
    return jax.lax.stop_gradient(jax.nn.softmax(jnp.log(as_float(weights)) + gain))


def project_simplex(x: Float[Array, "*b K"]) -> Float[Array, "*b K"]:
    """Returns the nearest point of the probability simplex, in Euclidean distance.

        p_k = max(x_k - tau, 0),  tau = (sum of the r largest x - 1) / r,  r = the most for which the r-th exceeds tau

    The other step for the weights: `project_simplex(alpha + step L)` ascends straight, and can leave a group at 0.

    Gradient: the projection onto the face, dp_j/dx_k = [j = k] - 1/r among the r positive entries, 0 elsewhere.

    Raises:
      ValueError: there is no axis.

    Reference: Duchi et al. 2008, "Efficient projections onto the l1-ball", figure 1 (doi:10.1145/1390156.1390191).

    >>> [round(p, 4) for p in project_simplex(jnp.array([0.9, 0.6, -1.0])).tolist()]
    [0.65, 0.35, 0.0]
    """
    require_axes("x", x, "K")
    x = as_float(x)
    # Moving all entries by one constant moves tau by it: with the largest at 0, the sums stay small and exact.
    x = x - jnp.max(x, axis=-1, keepdims=True)
    falling = jnp.flip(jnp.sort(x, axis=-1), axis=-1)
    rank = jnp.arange(1, x.shape[-1] + 1)
    taus = (jnp.cumsum(falling, axis=-1) - 1.0) / rank
    support = jnp.sum(falling > taus, axis=-1, keepdims=True)
    return jnp.maximum(x - jnp.take_along_axis(taus, support - 1, axis=-1), 0.0)


def robust_weights(
    weights: Float[Array, " K"], counts: Real[Array, " K"], group: Int[Array, "*b"]
) -> Float[Array, "*b"]:
    """Returns the weight of each pair, with which the mean over pairs is sum_g alpha_g L_g.

        w_i = alpha_g N / n_g          g the group of pair i, n_g pairs in group g, N = sum_g n_g

    With the counts of the data set this is the weight of algorithm 1: batches drawn from all pairs alike give the
    weighted sum in expectation. With the counts of the batch, they give it exactly. A pair of a group whose count is 0,
    or that is outside [0, K), has weight 0.

    Gradient: none; the weights are detached.

    Raises:
      TypeError: `group` holds no integers.
      ValueError: the shapes differ, or there is not one axis of groups.

    Reference: arXiv:2405.20304, algorithm 1.

    >>> robust_weights(jnp.array([0.5, 0.5]), jnp.array([2, 8]), jnp.array([0, 1])).tolist()
    [2.5, 0.625]
    """
    _require_groups("weights", weights)
    require_same_shape("counts", counts, "weights", weights)
    require_integers("group", group)
    counts = as_float(counts)
    each = as_float(weights) * jnp.sum(counts) / jnp.where(counts > 0, counts, 1.0)
    known = (group >= 0) & (group < len(counts))
    number = jnp.where(known, group, 0)
    return jax.lax.stop_gradient(jnp.where(known & (counts > 0)[number], each[number], 0.0))


def importance_weights(counts: Real[Array, " K"], group: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """Returns the weight of each pair with which all groups count the same: the fixed baseline of the robust loss.

        w_i = N / (K n_g)

    It is `robust_weights` at alpha_g = 1/K, and `robust_loss` with those alpha is its loss (IS-DPO, IS-IPO).

    >>> importance_weights(jnp.array([2, 8]), jnp.array([0, 1])).tolist()
    [2.5, 0.625]
    """
    _require_groups("counts", counts)
    return robust_weights(jnp.full(len(counts), 1.0 / len(counts)), counts, group)


def robust_loss(
    loss: Float[Array, "*b"],
    group: Int[Array, "*b"],
    scored: Bool[Array, "*b"],
    *,
    weights: Float[Array, " K"],
    counts: Real[Array, " K"],
) -> WeightedSum:
    """Returns the loss of a batch under the weights of the groups, not yet divided.

        total = sum over scored pairs of w_i l_i,  w_i = alpha_g N / n_g          weight = number of scored pairs

    Divided by its weight it is sum_g alpha_g L_g: exactly for the `counts` of the batch, in expectation for those of
    the data set (the paper's choice; micro-batches then add up without knowing each other).

    Gradient: w_i dl_i on each scored pair; `weights` and `counts` are detached.

    Args:
      loss: the loss of each pair; what is not scored may hold anything.
      group: the group of each pair, in [0, K).
      scored: True on the pairs that count.
      weights: alpha after this step's update.
      counts: n_g, pairs of each group.

    Raises:
      TypeError: `scored` is not boolean, or `group` holds no integers.
      ValueError: the shapes differ.

    Reference: arXiv:2405.20304, equation 6 and algorithm 1.

    >>> pairs = jnp.array([1.0, 3.0, 5.0]), jnp.array([0, 0, 1]), jnp.ones(3, bool)
    >>> robust_loss(*pairs, weights=jnp.array([0.25, 0.75]), counts=jnp.array([2, 1])).mean().tolist()
    4.25
    """
    _require_pairs(loss, group, scored)
    total = jnp.sum(robust_weights(weights, counts, group) * sanitise(loss, scored), where=scored)
    return WeightedSum(total, jnp.sum(scored).astype(total.dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupRobust:
    """The weights of the groups as a run carries them: where they start, and how a step moves them.

        alpha_g = 1 / K at first,  then  alpha'_g ~ alpha_g exp(step L_g)

    Attributes:
      groups: K.
      step: step size of the ascent. The scale of the losses matters: those of IPO grow like 1 / (4 beta^2).

    Raises:
      ValueError: `groups` is below 1, or `step` is negative.

    Reference: arXiv:2405.20304, algorithm 1.

    >>> control = GroupRobust(groups=2, step=1.0)
    >>> losses = WeightedSum(jnp.array([1.0, 4.0]), jnp.array([2.0, 2.0]))
    >>> [round(w, 4) for w in control.update(control.initial_weights(), losses).tolist()]
    [0.1824, 0.8176]
    """

    groups: int
    step: float = 0.01

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, got {self.groups}")
        require_at_least("step", self.step, 0.0)

    def initial_weights(self) -> Float[Array, " K"]:
        """Returns the weights of the first step: all alike."""
        return jnp.full(self.groups, 1.0 / self.groups)

    def update(self, weights: Float[Array, " K"], losses: WeightedSum) -> Float[Array, " K"]:
        """Returns the weights that this step's loss uses.

        Args:
          weights: alpha of the step before.
          losses: `group_losses` of all pairs of the step, under the policy before its update.
        """
        return exponentiated_gradient(weights, losses.mean(), step=self.step, present=jnp.asarray(losses.weight) > 0)


def _require_pairs(loss: jax.Array, group: jax.Array, scored: jax.Array) -> None:
    """Raises unless pairs, their groups and their mask agree."""
    require_mask("scored", scored, "loss", loss)
    require_integers("group", group)
    require_same_shape("group", group, "loss", loss)


def _require_groups(name: str, x: jax.Array) -> None:
    """Raises ValueError unless `x` has one axis, of groups."""
    if jnp.ndim(x) != 1:
        raise ValueError(f"{name} must have the one axis [K], got shape {jnp.shape(x)}")

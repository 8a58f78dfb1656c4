import importlib.util
import math
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from grpo_jax.core.naming import show
from grpo_jax.core.preference import Dpo, Ipo, pair_losses, pair_mean
from grpo_jax.core.robust import (
    GroupRobust,
    exponentiated_gradient,
    group_losses,
    importance_weights,
    project_simplex,
    robust_loss,
    robust_weights,
)
from grpo_jax.testing import oracle

LOSS = jnp.array([1.0, 3.0, jnp.nan, 2.0, 0.5, 7.0])
GROUP = jnp.array([0, 0, 1, 1, 2, 0])
SCORED = jnp.array([True, True, False, True, True, True])
ALPHA = jnp.array([0.2, 0.5, 0.3])

simplex = st.lists(st.just(0.0) | st.floats(1e-6, 1.0), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.1)


def test_group_losses_are_the_means_of_the_oracle():
    sums = group_losses(LOSS, GROUP, SCORED, groups=4)
    expected = oracle.group_means(LOSS.tolist(), GROUP.tolist(), SCORED.tolist(), number=4)
    np.testing.assert_allclose(sums.mean(), [m or 0.0 for m in expected], rtol=1e-6)
    np.testing.assert_array_equal(sums.weight, [3, 1, 1, 0])
    assert expected[3] is None


def test_group_losses_of_parts_add_up_and_leave_out_who_belongs_to_no_group():
    whole = group_losses(LOSS, GROUP, SCORED, groups=3)
    parts = [group_losses(LOSS[p], GROUP[p], SCORED[p], groups=3) for p in (slice(2), slice(2, None))]
    chex.assert_trees_all_close(parts[0] + parts[1], whole, rtol=1e-6)
    shaped = group_losses(*(x.reshape(2, 3) for x in (LOSS, GROUP, SCORED)), groups=3)
    chex.assert_trees_all_close(shaped, whole, rtol=1e-6)
    outside = group_losses(jnp.array([1.0, 9.0, 9.0]), jnp.array([0, -1, 3]), jnp.ones(3, bool), groups=3)
    np.testing.assert_array_equal(outside.weight, [1, 0, 0])


@settings(max_examples=50, deadline=None)
@given(simplex, st.lists(st.none() | st.floats(-5, 900), min_size=3, max_size=3), st.floats(0, 3))
def test_the_weights_step_equals_the_oracle_and_stays_on_the_simplex(weights, losses, step):
    weights = np.float32(weights) / np.float32(sum(weights))
    present = jnp.array([loss is not None for loss in losses])
    given_losses = jnp.array([math.nan if loss is None else loss for loss in losses])
    actual = exponentiated_gradient(jnp.array(weights), given_losses, step=step, present=present)
    expected = oracle.exponentiated_gradient(weights, losses, step=step)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(jnp.sum(actual), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(actual)[weights == 0], 0.0)


def test_the_weights_step_has_closed_forms():
    """A gap of L between two even groups: log odds step L. Equal losses: nothing moves. A huge one takes all."""
    even = jnp.array([0.5, 0.5])
    moved = exponentiated_gradient(even, jnp.array([5.0, 3.0]), step=0.25)
    np.testing.assert_allclose(moved, [1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.5))], rtol=1e-6)
    np.testing.assert_allclose(exponentiated_gradient(ALPHA, jnp.full(3, 9e4), step=1.0), ALPHA, rtol=1e-6)
    np.testing.assert_array_equal(exponentiated_gradient(even, jnp.array([1e8, 0.0]), step=1.0), [1.0, 0.0])
    twice = exponentiated_gradient(moved, jnp.array([1.0, 2.0]), step=0.25)
    np.testing.assert_allclose(twice, exponentiated_gradient(even, jnp.array([6.0, 5.0]), step=0.25), rtol=1e-6)


def test_a_group_without_data_is_moved_by_the_normalisation_alone():
    control = GroupRobust(groups=3, step=0.5)
    moved = control.update(ALPHA, group_losses(jnp.array([2.0, 4.0]), jnp.array([0, 0]), jnp.ones(2, bool), groups=3))
    grown = 0.2 * math.exp(1.5)
    np.testing.assert_allclose(moved, np.array([grown, 0.5, 0.3]) / (grown + 0.8), rtol=1e-6)
    nothing = group_losses(jnp.zeros(1), jnp.array([0]), jnp.zeros(1, bool), groups=3)
    np.testing.assert_allclose(control.update(ALPHA, nothing), ALPHA, rtol=1e-6)


def test_the_weights_have_no_gradient():
    step = lambda losses: exponentiated_gradient(ALPHA, losses, step=1.0)[0]  # noqa: E731
    np.testing.assert_array_equal(jax.grad(step)(jnp.array([1.0, 2.0, 3.0])), 0.0)
    counts = jnp.array([3, 1, 1])
    total = lambda a: robust_loss(LOSS, GROUP, SCORED, weights=a, counts=counts).mean()  # noqa: E731
    np.testing.assert_array_equal(jax.grad(total)(ALPHA), 0.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=6))
def test_the_projection_equals_the_oracle_and_is_optimal(x):
    """p is nearest iff it is on the simplex and (x - p).(q - p) <= 0 for every corner q."""
    p = np.asarray(project_simplex(jnp.array(x)), np.float64)
    np.testing.assert_allclose(p, oracle.project_simplex(x), atol=1e-5)
    np.testing.assert_allclose(p.sum(), 1.0, atol=1e-5)
    assert (p >= 0).all()
    assert ((np.asarray(x) - p) @ (np.eye(len(x)) - p).T <= 1e-3).all()


def test_the_projection_keeps_the_simplex_and_ignores_a_shift():
    np.testing.assert_allclose(project_simplex(ALPHA), ALPHA, rtol=1e-6)
    np.testing.assert_allclose(project_simplex(ALPHA + 1000.0), ALPHA, atol=1e-4)
    np.testing.assert_array_equal(project_simplex(jnp.array([3.0, 1.0, 1.0])), [1.0, 0.0, 0.0])
    np.testing.assert_allclose(project_simplex(jnp.zeros((2, 4))), jnp.full((2, 4), 0.25), rtol=1e-6)


def test_gradient_of_the_projection(float64):
    """On the face of the r positive entries p_j = x_j - (sum x - 1) / r: dp_j/dx_k = [j = k] - 1/r; 0 off the face."""
    x = jnp.array([0.9, 0.6, -1.0])
    expected = [[0.5, -0.5, 0.0], [-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(jax.jacrev(project_simplex)(x), expected, atol=1e-15)
    check_grads(project_simplex, (x,), order=1, modes=["rev"])


def test_the_robust_loss_with_the_counts_of_its_batch_is_the_weighted_sum_of_the_group_means():
    counts = group_losses(LOSS, GROUP, SCORED, groups=3).weight
    actual = robust_loss(LOSS, GROUP, SCORED, weights=ALPHA, counts=counts)
    expected = oracle.group_robust_loss(LOSS.tolist(), GROUP.tolist(), SCORED.tolist(), weights=ALPHA.tolist())
    np.testing.assert_allclose(actual.mean(), expected, rtol=1e-6)
    assert actual.weight == 5.0


def test_the_robust_loss_with_the_counts_of_the_data_is_right_on_average(rng):
    """Batches of 2 out of 6 pairs, all 15 of them alike likely: their mean is sum_g alpha_g L_g of the data."""
    loss = jnp.asarray(rng.random(6), jnp.float32)
    group, counts, scored = jnp.array([0, 0, 0, 1, 1, 2]), jnp.array([3, 2, 1]), jnp.ones(2, bool)
    batches = [[i, j] for i in range(6) for j in range(i)]
    one = jax.jit(lambda loss, group: robust_loss(loss, group, scored, weights=ALPHA, counts=counts).mean())
    mean = np.mean([one(loss[jnp.array(b)], group[jnp.array(b)]) for b in batches])
    expected = oracle.group_robust_loss(loss.tolist(), group.tolist(), [True] * 6, weights=ALPHA.tolist())
    np.testing.assert_allclose(mean, expected, rtol=1e-6)


@pytest.mark.parametrize("loss", [Dpo(beta=0.5), Ipo(beta=0.5)], ids=show)
def test_gradient_of_the_robust_loss(loss):
    """d/dh_i sum_g alpha_g mean_g l = alpha_g(i) / n_g(i) l'(h_i); DPO: l' = -beta sigmoid(-beta h), IPO: 2 (h - 1)."""
    h = jnp.array([1.0, -2.0, 0.5])
    group, counts, alpha = jnp.array([0, 0, 1]), jnp.array([2, 1]), jnp.array([0.3, 0.7])
    total = lambda h: robust_loss(loss(h), group, jnp.ones(3, bool), weights=alpha, counts=counts).mean()  # noqa: E731
    slope = -0.5 / (1 + np.exp(0.5 * h)) if isinstance(loss, Dpo) else 2 * (np.asarray(h) - 1)
    np.testing.assert_allclose(jax.grad(total)(h), slope * np.array([0.15, 0.15, 0.7]), rtol=1e-5)


def test_gradients_are_numerical_in_float64(float64):
    loss = lambda h: robust_loss(Dpo()(h), GROUP, SCORED, weights=ALPHA, counts=jnp.array([3, 1, 1])).mean()  # noqa: E731
    check_grads(loss, (jnp.linspace(-2.0, 2.0, 6),), order=1, modes=["rev"])


def test_what_is_not_scored_changes_nothing():
    counts = jnp.array([3, 1, 1])
    total = lambda x: robust_loss(x, GROUP, SCORED, weights=ALPHA, counts=counts).mean()  # noqa: E731
    expected, gradient = jax.value_and_grad(total)(jnp.where(SCORED, LOSS, 0.0))
    actual, with_junk = jax.value_and_grad(total)(LOSS)
    assert actual == expected
    np.testing.assert_array_equal(with_junk, gradient)
    assert with_junk[2] == 0.0
    nobody = robust_loss(LOSS, GROUP, jnp.zeros(6, bool), weights=ALPHA, counts=counts)
    assert nobody.mean() == 0.0


def test_one_group_and_the_shares_of_the_data_are_the_plain_mean():
    plain = pair_mean(LOSS, SCORED).mean()
    one = robust_loss(LOSS, 0 * GROUP, SCORED, weights=jnp.ones(1), counts=jnp.array([5])).mean()
    np.testing.assert_allclose(one, plain, rtol=1e-6)
    counts = jnp.array([3, 1, 1])
    shares = robust_loss(LOSS, GROUP, SCORED, weights=counts / 5, counts=counts).mean()
    np.testing.assert_allclose(shares, plain, rtol=1e-6)


def test_importance_weights_count_all_groups_alike():
    counts = jnp.array([3, 1, 1])
    np.testing.assert_allclose(importance_weights(counts, GROUP), [5 / 9, 5 / 9, 5 / 3, 5 / 3, 5 / 3, 5 / 9], rtol=1e-6)
    totals = group_losses(importance_weights(counts, GROUP), GROUP, SCORED, groups=3).total
    np.testing.assert_allclose(totals, [5 / 3] * 3, rtol=1e-6)
    np.testing.assert_array_equal(importance_weights(jnp.array([2, 0]), jnp.array([1, 2, -1])), 0.0)


class JitEqualsEager(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_one_step(self):
        control = GroupRobust(groups=3, step=0.1)

        def step(loss, group, scored):
            sums = group_losses(loss, group, scored, groups=3)
            alpha = control.update(control.initial_weights(), sums)
            return alpha, robust_loss(loss, group, scored, weights=alpha, counts=sums.weight).mean()

        alpha, value = self.variant(step)(LOSS, GROUP, SCORED)
        raised = np.exp(np.array([11 / 3, 2.0, 0.5]) * 0.1)
        np.testing.assert_allclose(alpha, raised / raised.sum(), rtol=1e-6)
        np.testing.assert_allclose(value, raised / raised.sum() @ [11 / 3, 2.0, 0.5], rtol=1e-6)
        chex.assert_trees_all_close(self.variant(project_simplex)(jnp.array([0.5, 0.9])), jnp.array([0.3, 0.7]))


def log_linear(theta, reference, features):
    """Returns what `pair_losses` reads for policies over 5 actions, 0 and 1 the pair; features are [N, 5, D]."""
    logp, ref_logp = (jax.nn.log_softmax(features @ p)[:, :2, None] for p in (theta, reference))
    return {"logp": logp, "ref_logp": ref_logp, "mask": jnp.ones(logp.shape, bool)}


@pytest.fixture
def regression(rng, float64):
    """60 pairs of two groups whose features differ, at random, and a reference that is not uniform."""
    features = rng.normal(size=(60, 5, 3)) + 0.6 * rng.normal(size=(60, 1, 3))
    group = np.repeat([0, 1], [15, 45])
    features[group == 1, 0] += [0.8, -0.5, 0.0]
    features[group == 0, 0] += [-0.2, 0.9, 0.3]
    reference = rng.normal(size=3)

    def closed_form(alpha, beta):
        d = features[:, 0] - features[:, 1]
        root = np.sqrt(np.asarray(alpha)[group] / np.bincount(group)[group])
        return reference + np.linalg.lstsq(root[:, None] * d, root / (2 * beta))[0]

    return jnp.asarray(features), jnp.asarray(group), jnp.asarray(reference), closed_form


def descend(features, group, reference, *, beta, alpha, control=None, steps=4000):
    """Returns theta and alpha after gradient descent on GR-IPO; without `control`, alpha is fixed."""
    scored, counts = jnp.ones(len(group), bool), jnp.bincount(group, length=2)

    def each(theta):
        return pair_losses(Ipo(beta=beta), **log_linear(theta, reference, features))

    def step(carry, _):
        theta, alpha = carry
        if control is not None:
            alpha = control.update(alpha, group_losses(each(theta), group, scored, groups=2))
        loss = lambda theta: robust_loss(each(theta), group, scored, weights=alpha, counts=counts).mean()  # noqa: E731
        return (theta - 0.05 * jax.grad(loss)(theta), alpha), None

    start = jnp.zeros(3), jnp.asarray(alpha)
    return jax.jit(lambda: jax.lax.scan(step, start, length=steps)[0])()


@pytest.mark.parametrize("alpha", [[0.25, 0.75], [0.9, 0.1]])
def test_ipo_under_fixed_weights_reaches_its_weighted_regression(regression, alpha):
    """h = (theta - theta_ref).d, so the loss is sum_i w_i (d_i.delta - 1/(2 beta))^2 with w_i = alpha_g / n_g."""
    *problem, closed_form = regression
    theta, _ = descend(*problem, beta=0.5, alpha=alpha)
    np.testing.assert_allclose(theta, closed_form(alpha, 0.5), rtol=1e-9)


def test_group_robust_ipo_reaches_the_saddle_point(regression):
    """There theta is the regression under alpha, and both groups lose the same: alpha could move no more."""
    *problem, closed_form = regression
    theta, alpha = descend(*problem, beta=0.5, alpha=[0.5, 0.5], control=GroupRobust(groups=2, step=0.05), steps=20000)
    features, group, reference = problem
    each = pair_losses(Ipo(beta=0.5), **log_linear(theta, reference, features))
    means = group_losses(each, group, jnp.ones(60, bool), groups=2).mean()
    assert 0.05 < alpha[0] < 0.95
    np.testing.assert_allclose(theta, closed_form(alpha, 0.5), rtol=1e-6)
    np.testing.assert_allclose(means[0], means[1], rtol=1e-6)
    for other in ([0.25, 0.75], [0.5, 0.5]):
        there = pair_losses(Ipo(beta=0.5), **log_linear(closed_form(other, 0.5), reference, features))
        assert means.max() < group_losses(there, group, jnp.ones(60, bool), groups=2).mean().max()


def test_the_worse_of_two_groups_loses_less_under_the_robust_loss():
    """The synthetic problem of arXiv:2405.20304 with features exchanged between the groups and data 0.2 : 0.8.

    Means of 20 seeds on held-out pairs; against the plain losses it also holds in each seed. For other feature maps
    the reward error does not always follow the loss: see the table of the experiment.
    """
    path = Path(__file__).parents[2] / "experiments/group_robust/run.py"
    spec = importlib.util.spec_from_file_location("group_robust", path)
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    run.REPORTS = 1
    found = run.results("swapped")
    for name in run.LOSSES:
        for what in ("loss", "reward_error"):
            plain, importance, robust = (run.worst(found[name, method], what) for method in run.METHODS)
            assert len(robust) == 20
            assert robust.mean() < importance.mean() < plain.mean()
            assert (robust < plain).all()


def test_bad_input_is_refused():
    pairs = jnp.zeros(3), jnp.zeros(3, int), jnp.ones(3, bool)
    with pytest.raises(TypeError, match="group must hold integers, got dtype float32"):
        group_losses(pairs[0], pairs[0], pairs[2], groups=2)
    with pytest.raises(TypeError, match="scored must be boolean"):
        robust_loss(pairs[0], pairs[1], pairs[0], weights=ALPHA, counts=jnp.ones(3))
    with pytest.raises(ValueError, match=r"group has shape \(2,\), but loss has shape \(3,\)"):
        group_losses(pairs[0], pairs[1][:2], pairs[2], groups=2)
    with pytest.raises(ValueError, match="groups must be at least 1, got 0"):
        group_losses(*pairs, groups=0)
    with pytest.raises(ValueError, match=r"counts has shape \(2,\), but weights has shape \(3,\)"):
        robust_weights(ALPHA, jnp.ones(2), pairs[1])
    with pytest.raises(ValueError, match=r"losses has shape \(2,\), but weights has shape \(3,\)"):
        exponentiated_gradient(ALPHA, jnp.ones(2), step=0.1)
    with pytest.raises(ValueError, match=r"weights must have the one axis \[K\], got shape \(1, 3\)"):
        exponentiated_gradient(ALPHA[None], jnp.ones((1, 3)), step=0.1)
    with pytest.raises(TypeError, match="present must be boolean"):
        exponentiated_gradient(ALPHA, ALPHA, step=0.1, present=ALPHA)
    with pytest.raises(ValueError, match=r"step must be a finite number >= 0.0, got -1"):
        exponentiated_gradient(ALPHA, ALPHA, step=-1.0)
    with pytest.raises(ValueError, match="groups must be at least 1, got 0"):
        GroupRobust(groups=0)
    with pytest.raises(ValueError, match=r"step must be a finite number >= 0.0, got nan"):
        GroupRobust(groups=2, step=math.nan)
    with pytest.raises(ValueError, match=r"x needs the trailing axes \[..., K\], got shape \(\)"):
        project_simplex(jnp.zeros(()))


def test_values_hash_compare_and_print():
    assert hash(GroupRobust(groups=2)) == hash(GroupRobust(groups=2))
    assert GroupRobust(groups=2) != GroupRobust(groups=2, step=0.1)
    assert repr(GroupRobust(groups=3)) == "GroupRobust(groups=3, step=0.01)"

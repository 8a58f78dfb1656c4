import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from grpo_jax.core import (
    GroupNormalised,
    Objective,
    PpoClip,
    ProcessNormalised,
    deepseek_r1,
    exact,
    grpo,
    k1,
    k2,
    k3,
    policy_loss,
    ppo_clip,
    sequence_mean,
    sft,
    token_mean,
)
from grpo_jax.testing import oracle
from grpo_jax.types import WeightedSum

MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
EVERYTHING = Objective(kl_coef=0.1, entropy_coef=0.01, surrogate=PpoClip(dual=3.0), aggregate=token_mean)
OBJECTIVES = {
    "grpo": grpo(),
    "deepseek_r1": deepseek_r1(),
    "ppo_clip": ppo_clip(low=0.1, high=0.3),
    "sft": sft(),
    "everything": EVERYTHING,
    "exact": Objective(kl=exact, kl_coef=0.1),
}
objectives = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def inputs(objective, *, filler=0.0, seed=0, dtype=np.float32):
    """Returns what `policy_loss` reads, with `filler` at padding."""
    rng = np.random.default_rng(seed)
    logp = rng.uniform(-2, -0.1, MASK.shape)
    batch = {
        "logp": logp,
        "old_logp": logp + rng.normal(size=MASK.shape) * 0.4,
        "advantage": rng.normal(size=MASK.shape),
        "entropy": rng.uniform(0, 2, MASK.shape),
        "divergence" if objective.kl == exact else "ref_logp": rng.uniform(0, 1, MASK.shape),
    }
    return {name: jnp.asarray(np.where(MASK, x, filler), dtype) for name, x in batch.items()}


def total(objective, batch, mask=MASK):
    return policy_loss(objective, mask=mask, **batch)[0].total


def gradients(objective, batch, mask=MASK):
    """Returns the loss, undivided, and its gradient on every floating input."""
    return jax.jit(jax.value_and_grad(lambda batch: total(objective, batch, mask)))(batch)


@pytest.mark.parametrize("name", ["grpo", "deepseek_r1", "ppo_clip", "everything"])
def test_losses_equal_the_oracle(name):
    objective = dataclasses.replace(OBJECTIVES[name], entropy_coef=0.0)
    batch = inputs(objective)
    expected_total, expected_weight = oracle.grpo_loss(
        *(np.asarray(batch[key], np.float64) for key in ("logp", "old_logp", "ref_logp")),
        MASK,
        batch["advantage"],
        low=objective.surrogate.low,
        high=objective.surrogate.high,
        dual=objective.surrogate.dual,
        kl_coef=objective.kl_coef,
        whole_sequence=name == "deepseek_r1",
        aggregate=getattr(oracle, objective.aggregate.__name__),
    )
    loss, _ = policy_loss(objective, mask=MASK, **batch)
    np.testing.assert_allclose(loss.total, expected_total, rtol=1e-5)
    assert loss.weight == expected_weight


def test_entropy_and_the_exact_divergence_enter_with_their_coefficients():
    batch = inputs(OBJECTIVES["exact"])
    plain = policy_loss(Objective(kl=exact), mask=MASK, **batch)[0]
    full = policy_loss(Objective(kl=exact, kl_coef=0.5, entropy_coef=0.25), mask=MASK, **batch)[0]
    extra = 0.5 * np.asarray(batch["divergence"]) - 0.25 * np.asarray(batch["entropy"])
    np.testing.assert_allclose(full.total - plain.total, oracle.sequence_mean(extra, MASK)[0], rtol=1e-5)


def test_supervised_fine_tuning_is_the_mean_negative_log_likelihood():
    logp = inputs(sft())["logp"]
    loss, _ = policy_loss(sft(), logp=logp, mask=MASK, advantage=jnp.ones(MASK.shape))
    np.testing.assert_allclose(loss.mean(), -np.asarray(logp)[MASK].mean(), rtol=1e-6)


def test_gradient_of_grpo_by_hand():
    """dL/dlogp_bt = [-r A (live) + 0.04 (1 - pi_ref/pi)] / |o_b|, as k3 has the slope 1 - pi_ref/pi."""
    objective = grpo()
    batch = {key: np.asarray(x, np.float64) for key, x in inputs(objective).items()}
    ratio = np.exp(batch["logp"] - batch["old_logp"])
    live = np.where(batch["advantage"] > 0, ratio <= 1.2, ratio >= 0.8)
    assert 0 < live[MASK].sum() < MASK.sum()
    slope = -ratio * batch["advantage"] * live + 0.04 * (1 - np.exp(batch["ref_logp"] - batch["logp"]))
    expected = np.where(MASK, slope / np.maximum(MASK.sum(-1, keepdims=True), 1), 0.0)
    actual = gradients(objective, inputs(objective))[1]["logp"]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_gradient_of_deepseek_r1_by_hand():
    """dL/dlogp_bt = -r_b A_b for every token of a row: r_b is a product, and nothing divides by the length."""
    objective = dataclasses.replace(deepseek_r1(), kl_coef=0.0)
    batch = inputs(objective)
    batch["advantage"] = jnp.broadcast_to(batch["advantage"][:, :1] + 1, MASK.shape)
    log_ratio = np.where(MASK, np.float64(batch["logp"]) - np.float64(batch["old_logp"]), 0.0)
    ratio = np.exp(log_ratio.sum(-1, keepdims=True))
    assert ratio.max() < 11
    expected = np.where(MASK, -ratio * np.float64(batch["advantage"]), 0.0)
    np.testing.assert_allclose(gradients(objective, batch)[1]["logp"], expected, rtol=1e-4, atol=1e-6)


@objectives
def test_gradients_are_numerical_in_float64(float64, objective):
    """What is detached is closed over, so a difference quotient cannot see it."""
    batch = inputs(objective, dtype=np.float64)
    live = {key: batch.pop(key) for key in ("logp", "entropy", "divergence") if key in batch}
    check_grads(lambda live: total(objective, {**batch, **live}), (live,), order=1, modes=["rev"])


@objectives
def test_old_reference_and_advantage_are_constants(objective):
    slopes = gradients(objective, inputs(objective))[1]
    for name in ("old_logp", "ref_logp", "advantage"):
        np.testing.assert_array_equal(slopes.get(name, 0.0), 0.0)
    assert np.abs(slopes["logp"][MASK]).max() > 0


@objectives
@pytest.mark.parametrize("filler", [np.nan, np.array([np.inf, -np.inf, np.nan, 1e30])])
def test_padding_reaches_neither_value_nor_gradient(objective, filler):
    value, slopes = gradients(objective, inputs(objective))
    filled_value, filled_slopes = gradients(objective, inputs(objective, filler=filler))
    np.testing.assert_array_equal(filled_value, value)
    chex.assert_trees_all_equal(filled_slopes, slopes)
    for slope in filled_slopes.values():
        np.testing.assert_array_equal(slope[~MASK], 0.0)
    for name, metric in policy_loss(objective, mask=MASK, **inputs(objective, filler=filler))[1].items():
        assert np.isfinite(metric.mean()), name


@objectives
def test_no_scored_token_at_all_is_0(objective):
    batch, nothing = inputs(objective, filler=np.nan), np.zeros_like(MASK)
    loss, metrics = policy_loss(objective, mask=nothing, **batch)
    assert loss.mean() == 0
    assert all(metric.mean() == 0 for metric in metrics.values())
    for slope in gradients(objective, batch, nothing)[1].values():
        np.testing.assert_array_equal(slope, 0.0)


@objectives
def test_micro_batches_add_up(objective):
    """Pieces of 1, 3, 1 and 1 rows of unequal length, and one of them without a scored token."""
    batch = inputs(objective, filler=np.nan)
    compiled = jax.jit(lambda mask, batch: policy_loss(objective, mask=mask, **batch))
    whole, metrics = compiled(MASK, batch)
    slopes = gradients(objective, batch)[1]
    added, added_metrics, added_slopes = WeightedSum(0.0, 0.0), {}, []
    for rows in np.split(np.arange(len(MASK)), [1, 4, 5]):
        piece = {name: x[rows] for name, x in batch.items()}
        loss, piece_metrics = compiled(MASK[rows], piece)
        added += loss
        for name, metric in piece_metrics.items():
            added_metrics[name] = added_metrics.get(name, WeightedSum(0.0, 0.0)) + metric
        added_slopes.append(gradients(objective, piece, MASK[rows])[1])
    joined = {name: jnp.concatenate([piece[name] for piece in added_slopes]) for name in slopes}
    chex.assert_trees_all_close((added, added_metrics, joined), (whole, metrics, slopes), rtol=1e-5, atol=1e-6)


@objectives
def test_more_padding_changes_nothing(objective):
    batch = inputs(objective, filler=np.nan)
    wide = {name: jnp.pad(x, ((0, 2), (0, 3)), constant_values=np.nan) for name, x in batch.items()}
    loss = policy_loss(objective, mask=MASK, **batch)[0]
    wide_loss = policy_loss(objective, mask=jnp.pad(MASK, ((0, 2), (0, 3))), **wide)[0]
    chex.assert_trees_all_close(wide_loss, loss, rtol=1e-6)


@objectives
def test_the_order_of_rows_changes_nothing(objective):
    batch, order = inputs(objective), np.array([3, 0, 5, 1, 4, 2])
    value, slopes = gradients(objective, batch)
    moved_value, moved_slopes = gradients(objective, {n: x[order] for n, x in batch.items()}, MASK[order])
    chex.assert_trees_all_close(
        (moved_value, moved_slopes), (value, {n: x[order] for n, x in slopes.items()}), rtol=1e-5
    )


@objectives
def test_without_old_log_probabilities_old_is_new(objective):
    batch = inputs(objective)
    batch["old_logp"] = batch["logp"]
    value, slopes = gradients(objective, batch)
    del batch["old_logp"], slopes["old_logp"]
    chex.assert_trees_all_equal(gradients(objective, batch), (value, slopes))


@pytest.mark.parametrize("objective", [ppo_clip(), dataclasses.replace(ppo_clip(), aggregate=token_mean)])
def test_at_policy_equality_the_gradient_is_reinforce_with_a_group_baseline(objective):
    """grad = -sum A dlog pi, although the value is 0 under the sequence mean: a group's advantages sum to zero."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 4, 3, 5)), jnp.float32)
    tokens = rng.integers(0, 5, (2, 4, 3, 1))
    mask = jnp.ones((2, 4, 3), bool)
    reward = jnp.asarray(rng.integers(0, 2, (2, 4)), jnp.float32)
    advantage = jnp.broadcast_to(objective.advantage(reward, mask[..., 0])[..., None], mask.shape)

    def logp(logits):
        return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens, -1)[..., 0]

    loss, slope = jax.value_and_grad(
        lambda z: policy_loss(objective, logp=logp(z), mask=mask, advantage=advantage)[0].mean()
    )(logits)
    expected = jax.grad(lambda z: -jnp.mean(advantage * logp(z)))(logits)
    np.testing.assert_allclose(loss, 0.0, atol=1e-6)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-7)


def test_metrics_by_hand():
    """Ratios 2, 1 and 1/2 with advantages 1, 1 and -1 at clip 0.2: the first and the last are clipped."""
    log_ratio = np.log([[2.0, 1.0, 0.5, 9.0]])
    old = np.full((1, 4), -3.0)
    _, metrics = policy_loss(
        Objective(),
        logp=jnp.asarray(old + log_ratio, jnp.float32),
        old_logp=jnp.asarray(old, jnp.float32),
        ref_logp=jnp.asarray(old, jnp.float32),
        entropy=jnp.array([[1.0, 2.0, 6.0, np.nan]]),
        mask=jnp.array([[True, True, True, False]]),
        advantage=jnp.array([[1.0, 1.0, -1.0, 1.0]]),
    )
    expected = {
        "ratio": 3.5 / 3,
        "clip_fraction": 2 / 3,
        "approx_kl": (2 - np.log(2) - 1 + 0.5 + np.log(2) - 1) / 3,
        "kl": (0.5 + np.log(2) - 1 + 2 - np.log(2) - 1) / 3,
        "entropy": 3.0,
        "loss_policy": (-1.2 - 1 + 0.8) / 3,
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name].mean(), value, rtol=1e-5, err_msg=name)


def test_approx_kl_is_that_of_the_old_policy_from_the_new_one():
    """The tokens come from the old policy, so k3 takes r = pi / pi_old."""
    _, metrics = policy_loss(
        Objective(), logp=jnp.full((1, 1), -1.0), old_logp=jnp.full((1, 1), -3.0), mask=jnp.ones((1, 1), bool),
        advantage=jnp.ones((1, 1)),
    )  # fmt: skip
    np.testing.assert_allclose(metrics["approx_kl"].mean(), np.exp(2) - 2 - 1, rtol=1e-6)


@objectives
def test_metrics_carry_no_gradient(objective):
    def metrics(batch):
        return sum(m.total for m in policy_loss(objective, mask=MASK, **batch)[1].values())

    for slope in jax.grad(metrics)(inputs(objective)).values():
        np.testing.assert_array_equal(slope, 0.0)


def test_a_divergence_without_a_coefficient_is_only_a_metric():
    batch = inputs(Objective())
    loss, metrics = policy_loss(Objective(), mask=MASK, **batch)
    del batch["ref_logp"], batch["entropy"]
    assert policy_loss(Objective(), mask=MASK, **batch)[0].total == loss.total
    assert {"kl", "entropy"} <= metrics.keys()


@pytest.mark.parametrize("estimator", [k1, k2, k3])
def test_any_estimator_fits_the_slot(estimator):
    batch = inputs(Objective())
    metric = policy_loss(Objective(kl=estimator), mask=MASK, **batch)[1]["kl"]
    expected = getattr(oracle, estimator.__name__)(batch["logp"], batch["ref_logp"])
    np.testing.assert_allclose(metric.total, oracle.token_mean(expected, MASK)[0], rtol=1e-5)


class JitEqualsEager(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_every_preset(self):
        for name, objective in OBJECTIVES.items():
            batch = inputs(objective, filler=np.nan)
            actual = self.variant(lambda batch, o=objective: policy_loss(o, mask=MASK, **batch))(batch)
            eager = policy_loss(objective, mask=MASK, **inputs(objective))
            chex.assert_trees_all_close(actual, eager, rtol=1e-5, atol=1e-7, custom_message=name)


def test_equal_objectives_do_not_recompile():
    traces = []

    def loss(batch, objective):
        traces.append(objective)
        return policy_loss(objective, mask=MASK, **batch)[0]

    compiled = jax.jit(loss, static_argnames="objective")
    for objective in (grpo(), grpo(), dataclasses.replace(grpo())):
        compiled(inputs(objective), objective=objective)
    assert len(traces) == 1
    compiled(inputs(grpo()), objective=dataclasses.replace(grpo(), kl_coef=0.1))
    assert len(traces) == 2


def test_objectives_hash_compare_and_print_by_value():
    for make in (grpo, deepseek_r1, ppo_clip, sft):
        assert make() == make()
        assert hash(make()) == hash(make())
        assert repr(make()) == repr(make())
        assert " at 0x" not in repr(make())
    assert len({grpo(), deepseek_r1(), ppo_clip(), sft()}) == 4


@pytest.mark.parametrize(
    ("objective", "reference", "entropy", "full"),
    [
        (Objective(), False, False, False),
        (Objective(kl_coef=0.1), True, False, False),
        (Objective(reward_kl_coef=0.1), True, False, False),
        (Objective(entropy_coef=0.1), False, True, False),
        (Objective(kl=exact), False, False, False),
        (Objective(kl=exact, kl_coef=0.1), True, False, True),
        (Objective(kl=exact, reward_kl_coef=0.1), True, False, True),
        (Objective(advantage=ProcessNormalised()), False, False, False),
    ],
)
def test_what_an_objective_needs(objective, reference, entropy, full):
    assert objective.needs_reference == reference
    assert objective.needs_entropy == entropy
    assert objective.full_vocabulary == full


@pytest.mark.parametrize("field", ["kl_coef", "reward_kl_coef", "entropy_coef"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_bad_coefficients_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be a finite number >= 0"):
        Objective(**{field: value})


def test_one_penalty_has_one_place():
    with pytest.raises(ValueError, match=r"kl_coef=0\.1 and reward_kl_coef=0\.2 penalise the same divergence twice"):
        Objective(kl_coef=0.1, reward_kl_coef=0.2)


@pytest.mark.parametrize("advantage", [ProcessNormalised(), None])
def test_a_penalty_in_the_reward_needs_a_reward_per_completion(advantage):
    with pytest.raises(
        ValueError, match=r"reward_kl_coef=0\.1 needs an advantage that reads one reward per completion"
    ):
        Objective(advantage=advantage, reward_kl_coef=0.1)
    assert Objective(advantage=GroupNormalised(), reward_kl_coef=0.1, aggregate=sequence_mean).needs_reference


@pytest.mark.parametrize(
    ("objective", "change", "error"),
    [
        (grpo(), {"mask": np.ones(MASK.shape)}, (TypeError, "mask must be boolean")),
        (grpo(), {"mask": MASK[0]}, (ValueError, r"mask has shape \(4,\), but logp has shape \(6, 4\)")),
        (grpo(), {"advantage": jnp.ones(6)}, (ValueError, r"advantage has shape \(6,\), but logp has shape \(6, 4\)")),
        (grpo(), {"old_logp": jnp.ones((6, 1))}, (ValueError, r"old_logp has shape \(6, 1\)")),
        (grpo(), {"ref_logp": None}, (ValueError, r"kl_coef=0\.04 with kl=k3 needs ref_logp")),
        (grpo(), {"divergence": jnp.ones((6, 4))}, (ValueError, "kl=k3 reads ref_logp, but divergence was given")),
        (OBJECTIVES["exact"], {"divergence": None}, (ValueError, "needs divergence")),
        (OBJECTIVES["exact"], {"ref_logp": jnp.ones((6, 4))}, (ValueError, "reads divergence, but ref_logp was given")),
        (EVERYTHING, {"entropy": None}, (ValueError, r"entropy_coef=0\.01 needs entropy")),
    ],
)
def test_bad_inputs_are_refused_while_tracing(objective, change, error):
    batch = {"mask": MASK, **inputs(objective), **change}
    with pytest.raises(error[0], match=error[1]):
        jax.eval_shape(lambda: policy_loss(objective, **batch))

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from grpo_jax.core import GroupNormalised, Objective, ProcessNormalised, policy_loss, presets
from grpo_jax.core.aggregate import ConstantLength, sequence_mean, sequence_sum, token_mean
from grpo_jax.core.control import AdaptiveEntropy, AdaptiveKl
from grpo_jax.core.correction import Chained, OffPolicyMask, RejectTokens, SequenceTruncated, TokenBand
from grpo_jax.core.kl import Clamped, ImportanceWeighted, RatioWeighted, StraightThrough, absolute, exact, k1, k2, k3
from grpo_jax.core.presets import deepseek_r1, grpo, ppo_clip, sft
from grpo_jax.core.ratio import sequence_average, sequence_average_token
from grpo_jax.core.surrogate import (
    CispoCap,
    CispoClip,
    ClipCov,
    Dppo,
    EntropySelected,
    KlCov,
    PpoClip,
    Vespo,
    binary_kl,
)
from grpo_jax.core.value import ClippedValue
from grpo_jax.testing import oracle

MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
EVERYTHING = Objective(
    kl_coef=0.1,
    entropy_coef=0.01,
    surrogate=PpoClip(dual=3.0),
    correction=Chained(corrections=(SequenceTruncated(cap=1.5), TokenBand(low=0.5, high=1.2))),
    aggregate=token_mean,
)
OBJECTIVES = {
    **{name: getattr(presets, name)() for name in presets.__all__},
    "everything": EVERYTHING,
    "exact": Objective(kl=exact, kl_coef=0.1),
    "adaptive": Objective(kl_coef=AdaptiveKl(initial=0.1, target=0.01), entropy_coef=AdaptiveEntropy(target=1.0)),
    "rejected": Objective(correction=RejectTokens(limit=0.02)),
    "off_policy": Objective(correction=OffPolicyMask(limit=0.05), ratio=sequence_average),
    "straight": Objective(kl=StraightThrough(value=k3, gradient=k2), kl_coef=0.1, aggregate=sequence_sum),
    "weighted": Objective(kl=RatioWeighted(kl=k3), kl_coef=0.1, aggregate=ConstantLength(length=4.0)),
    "importance_weighted": Objective(kl=ImportanceWeighted(), kl_coef=0.1, ratio=sequence_average),
    "clamped": Objective(kl=Clamped(log_ratio=0.4), kl_coef=0.1),
    "absolute": Objective(kl=absolute, kl_coef=0.1),
    "vespo": Objective(surrogate=Vespo()),
    "cispo_cap": Objective(surrogate=CispoCap(cap=1.2)),
    "dppo": Objective(surrogate=Dppo(limit=0.02, divergence=binary_kl)),
    "clip_cov": Objective(surrogate=ClipCov()),
    "kl_cov": Objective(surrogate=KlCov()),
    "entropy_selected": Objective(surrogate=EntropySelected(share=0.5)),
}
objectives = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def inputs(objective, *, filler=0.0, seed=0, dtype=np.float32):
    """Returns what `policy_loss` reads, with `filler` at padding."""
    rng = np.random.default_rng(seed)
    logp = rng.uniform(-2, -0.1, MASK.shape)
    old_logp = logp + rng.normal(size=MASK.shape) * 0.4
    batch = {
        "logp": logp,
        "old_logp": old_logp,
        "advantage": rng.normal(size=MASK.shape),
        "entropy": rng.uniform(0, 2, MASK.shape),
        "divergence" if objective.kl == exact else "ref_logp": rng.uniform(0, 1, MASK.shape),
        "sampler_logp": old_logp + rng.normal(size=MASK.shape) * 0.2,
    }
    return {name: jnp.asarray(np.where(MASK, x, filler), dtype) for name, x in batch.items()}


SELECTED = np.random.default_rng(3).random(MASK.shape) < 0.5
"""What a surrogate with a `select` picked; True at some padding too, which must not matter."""


@functools.cache
def program(objective):
    """Returns the loss and the gradient on every floating input, compiled once per shape."""

    def total(batch, mask, selected):
        loss, metrics = policy_loss(objective, mask=mask, selected=selected, **batch)
        return loss.total, (loss, metrics)

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def evaluate(objective, batch, mask=MASK, selected=SELECTED):
    """Returns the loss, its metrics, and the gradient of its total on every floating input."""
    (_, (loss, metrics)), slopes = program(objective)(batch, mask, selected)
    return loss, metrics, slopes


@pytest.mark.parametrize("name", ["grpo", "deepseek_r1", "ppo_clip", "dapo", "trl_grpo", "verl_grpo", "verl_ppo"])
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
    actual = evaluate(objective, inputs(objective))[2]["logp"]
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
    np.testing.assert_allclose(evaluate(objective, batch)[2]["logp"], expected, rtol=1e-4, atol=1e-6)


def detaches(objective):
    """Whether a term's own formula stops a gradient: then a difference quotient is another function.

    The tests of such a term check its gradient, with what it stops passed separately.
    """
    terms = (objective.surrogate, objective.ratio, objective.kl, objective.correction)
    kinds = (CispoClip, CispoCap, Vespo, Dppo, StraightThrough, OffPolicyMask)
    return any(isinstance(term, kinds) or term is sequence_average_token for term in terms)


DIFFERENTIABLE = {name: objective for name, objective in OBJECTIVES.items() if not detaches(objective)}


@pytest.mark.parametrize("objective", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE)
def test_gradients_are_numerical_in_float64(float64, objective):
    """What is detached is closed over, so a difference quotient cannot see it."""
    batch = inputs(objective, dtype=np.float64)
    live = {key: batch.pop(key) for key in ("logp", "entropy", "divergence") if key in batch}

    def total(live):
        return policy_loss(objective, mask=MASK, selected=SELECTED, **batch, **live)[0].total

    check_grads(jax.jit(total), (live,), order=1, modes=["rev"])


@objectives
def test_old_reference_and_advantage_are_constants(objective):
    slopes = evaluate(objective, inputs(objective))[2]
    for name in ("old_logp", "ref_logp", "advantage", "sampler_logp"):
        np.testing.assert_array_equal(slopes.get(name, 0.0), 0.0)
    assert np.abs(slopes["logp"][MASK]).max() > 0


@objectives
@pytest.mark.parametrize("filler", [np.nan, np.array([np.inf, -np.inf, np.nan, 1e30])], ids=["nan", "inf"])
def test_padding_reaches_neither_value_nor_gradient(objective, filler):
    loss, metrics, slopes = evaluate(objective, inputs(objective))
    filled = evaluate(objective, inputs(objective, filler=filler), selected=SELECTED | ~MASK)
    chex.assert_trees_all_equal(filled, (loss, metrics, slopes))
    for slope in filled[2].values():
        np.testing.assert_array_equal(slope[~MASK], 0.0)
    for name, metric in filled[1].items():
        assert np.isfinite(metric.mean()), name


@objectives
def test_no_scored_token_at_all_is_0(objective):
    loss, metrics, slopes = evaluate(objective, inputs(objective, filler=np.nan), np.zeros_like(MASK))
    assert loss.mean() == 0
    assert all(metric.mean() == 0 for metric in metrics.values())
    for slope in slopes.values():
        np.testing.assert_array_equal(slope, 0.0)


@objectives
def test_micro_batches_add_up(objective):
    """Pieces of 1, 3, 1 and 1 rows of unequal length, and one of them without a scored token."""
    batch = inputs(objective, filler=np.nan)
    pieces = [
        evaluate(objective, {name: x[rows] for name, x in batch.items()}, MASK[rows], SELECTED[rows])
        for rows in np.split(np.arange(len(MASK)), [1, 4, 5])
    ]
    added = jax.tree.map(lambda *x: sum(x), *[(loss, metrics) for loss, metrics, _ in pieces])
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), *[slopes for *_, slopes in pieces])
    chex.assert_trees_all_close((*added, joined), evaluate(objective, batch), rtol=1e-5, atol=1e-6)


@objectives
def test_more_padding_changes_nothing(objective):
    batch = inputs(objective, filler=np.nan)
    more = ((0, 2), (0, 3))
    wide = {name: jnp.pad(x, more, constant_values=np.nan) for name, x in batch.items()}
    loss, metrics, slopes = evaluate(objective, wide, np.pad(MASK, more), np.pad(SELECTED, more))
    slopes = {name: x[:6, :4] for name, x in slopes.items()}
    chex.assert_trees_all_close((loss, metrics, slopes), evaluate(objective, batch), rtol=1e-5, atol=1e-7)


@objectives
def test_the_order_of_rows_changes_nothing(objective):
    batch, order = inputs(objective), np.array([3, 0, 5, 1, 4, 2])
    loss, metrics, slopes = evaluate(objective, batch)
    moved = evaluate(objective, {n: x[order] for n, x in batch.items()}, MASK[order], SELECTED[order])
    expected = (loss, metrics, {n: x[order] for n, x in slopes.items()})
    chex.assert_trees_all_close(moved, expected, rtol=1e-5, atol=1e-7)


@objectives
def test_eight_devices_equal_one(objective):
    """Rows spread over eight devices, two of them with nothing but padding."""
    pad = ((0, 2), (0, 0))
    batch = {name: jnp.pad(x, pad, constant_values=np.nan) for name, x in inputs(objective).items()}
    rows = NamedSharding(Mesh(np.array(jax.devices()), "rows"), PartitionSpec("rows"))
    spread = jax.device_put((batch, np.pad(MASK, pad), np.pad(SELECTED, pad)), rows)
    loss, metrics, slopes = evaluate(objective, *spread)
    assert len(slopes["logp"].sharding.device_set) == 8
    slopes = {name: np.asarray(x)[:6] for name, x in slopes.items()}
    expected = evaluate(objective, inputs(objective))
    chex.assert_trees_all_close(jax.device_get((loss, metrics, slopes)), expected, rtol=1e-5, atol=1e-7)


@objectives
def test_without_old_log_probabilities_old_is_new(objective):
    batch = inputs(objective)
    batch["old_logp"] = batch["logp"]
    loss, metrics, slopes = evaluate(objective, batch)
    del batch["old_logp"], slopes["old_logp"]
    chex.assert_trees_all_equal(evaluate(objective, batch), (loss, metrics, slopes))


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
        return sum(m.total for m in policy_loss(objective, mask=MASK, selected=SELECTED, **batch)[1].values())

    for slope in jax.jit(jax.grad(metrics))(inputs(objective)).values():
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


@objectives
def test_jit_equals_eager(objective):
    batch = inputs(objective, filler=np.nan)
    eager = policy_loss(objective, mask=MASK, selected=SELECTED, **batch)
    chex.assert_trees_all_close(evaluate(objective, batch)[:2], eager, rtol=1e-5, atol=1e-7)


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


def test_a_critic_and_its_loss_go_together():
    with pytest.raises(ValueError, match=r"asks for a critic's value, but the critic's loss is value=None"):
        Objective(advantage=presets.ppo().advantage)
    with pytest.raises(ValueError, match=r"GroupNormalised.* does not ask for a critic's value, .* value=ClippedValue"):
        Objective(value=ClippedValue())
    assert presets.ppo().needs_critic
    assert not grpo().needs_critic


@dataclasses.dataclass(frozen=True)
class Choosy:
    """A surrogate whose `select` asks for too much."""

    def select(self, *, mask, reward):
        return mask & (reward > 0)

    def __call__(self, log_ratio, logp, advantage, *, selected):
        return -advantage * logp, selected


@pytest.mark.parametrize(
    ("slot", "component", "message"),
    [
        (
            "advantage",
            lambda reward, valid, *, length: reward,
            "asks for length; this slot offers mask, token_reward, ",
        ),
        ("ratio", lambda log_ratio, mask, *, logp: log_ratio, "asks for logp; this slot offers nothing beyond its arg"),
        ("surrogate", lambda s, logp, adv, *, key: logp, "asks for key; this slot offers mask, old_logp, selected$"),
        (
            "surrogate",
            Choosy(),
            r"\.select=Choosy\.select asks for reward; this slot offers mask, old_logp",
        ),
        ("correction", lambda gap, mask, *, entropy: gap, "asks for entropy; this slot offers logp, sampler_logp, adv"),
        ("kl", lambda logp, ref_logp, *, old_logp: logp, "asks for old_logp; this slot offers mask, log_ratio, import"),
        ("aggregate", lambda x, mask, *, logp: x, "asks for logp; this slot offers nothing beyond its arguments"),
        ("value", lambda v, old, r, *, mask: v, "asks for mask; this slot offers nothing beyond its arguments"),
    ],
)
def test_a_name_that_a_slot_does_not_offer_is_refused_with_those_that_it_offers(slot, component, message):
    with pytest.raises(ValueError, match=f"{slot}.*{message}"):
        Objective(**{slot: component})


def test_a_surrogate_that_reads_a_choice_makes_it():
    def reader(log_ratio, logp, advantage, *, selected):
        return -advantage * logp, selected

    with pytest.raises(ValueError, match=r"surrogate=.*reader asks for selected, but has no method `select`"):
        Objective(surrogate=reader)


def test_a_divergence_says_which_function_of_the_vocabulary_it_is():
    def nameless(logp, ref_logp, *, divergence):
        return divergence

    with pytest.raises(ValueError, match=r"kl=.*nameless asks for divergence, but its attribute .* is no function"):
        Objective(kl=nameless)


def test_a_divergence_of_ones_own_needs_the_vocabulary_without_being_a_full_vocabulary():
    """What a component asks for says what it needs; its class does not."""

    @dataclasses.dataclass(frozen=True)
    class Half:
        divergence = staticmethod(exact.divergence)

        def __call__(self, logp, ref_logp, *, divergence):
            assert ref_logp is None
            return 0.5 * divergence

    half = Objective(kl=Half(), kl_coef=0.2)
    assert half.full_vocabulary
    batch = inputs(OBJECTIVES["exact"])
    chex.assert_trees_all_close(
        policy_loss(half, mask=MASK, **batch)[0], policy_loss(OBJECTIVES["exact"], mask=MASK, **batch)[0], rtol=1e-6
    )


def test_a_kl_may_ask_for_the_mask_that_a_correction_left():
    """It counts the tokens of its row: 2 where one of 3 was rejected."""
    seen = {}

    def counting(logp, ref_logp, *, mask):
        seen["mask"] = mask
        return jnp.broadcast_to(jnp.sum(mask, axis=-1, keepdims=True), logp.shape)

    batch = inputs(Objective())
    batch["sampler_logp"] = batch["old_logp"].at[0, 1].add(9.0)
    objective = Objective(kl=counting, kl_coef=1.0, correction=RejectTokens(limit=1.0), aggregate=token_mean)
    metrics = policy_loss(objective, mask=MASK, **batch)[1]
    kept = MASK.copy()
    kept[0, 1] = False
    np.testing.assert_array_equal(seen["mask"], kept)
    np.testing.assert_allclose(metrics["kl"].total, np.sum(kept.sum(-1) ** 2))


def test_the_kl_of_trls_gspo_is_weighted_by_the_ratio_of_the_sequence():
    """Value by the oracle. Gradient: sum_t e^s k3_t with s = mean_u (logp_u - old_u) and k3' = 1 - pi_ref/pi has

    e^s (1 - pi_ref/pi)_u + e^s mean_t k3_t on each scored token u, over |o| in the mean over a sequence.
    """
    objective = dataclasses.replace(presets.gspo(), kl=ImportanceWeighted(kl=k3), kl_coef=1.0)
    batch = inputs(objective, filler=np.nan) | {"advantage": jnp.zeros(MASK.shape)}
    loss, metrics, slopes = evaluate(objective, batch)
    logp, old, ref = (np.asarray(batch[name], np.float64) for name in ("logp", "old_logp", "ref_logp"))
    expected = oracle.sequence_weighted_k3(logp, ref, old, MASK)
    np.testing.assert_allclose(loss.total, oracle.sequence_mean(expected, MASK)[0], rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"].total, expected[MASK].sum(), rtol=1e-5)
    for b, scored in enumerate(MASK):
        s = (logp - old)[b][scored].mean() if scored.any() else 0.0
        kl = oracle.k3(logp[b][scored], ref[b][scored])
        slope = np.exp(s) * (1 - np.exp(ref - logp)[b][scored] + kl.sum() / max(scored.sum(), 1)) / max(scored.sum(), 1)
        np.testing.assert_allclose(slopes["logp"][b][scored], slope, rtol=1e-4, atol=1e-6)
    per_token = dataclasses.replace(objective, ratio=presets.grpo().ratio)
    weighted = dataclasses.replace(per_token, kl=RatioWeighted(kl=k3))
    chex.assert_trees_all_close(evaluate(per_token, batch)[0], evaluate(weighted, batch)[0], rtol=1e-6)


def test_an_adaptive_penalty_in_the_reward_needs_an_estimator():
    with pytest.raises(ValueError, match="follows the KL of the drawn tokens, which kl=FullVocabulary"):
        Objective(kl=exact, reward_kl_coef=AdaptiveKl(initial=0.1, target=0.1))


def test_coefficients_that_adapt_start_at_their_initial_value_and_can_be_given():
    objective = OBJECTIVES["adaptive"]
    fixed = dataclasses.replace(objective, kl_coef=0.1, entropy_coef=0.0)
    batch = inputs(objective)
    start = policy_loss(objective, mask=MASK, **batch)[0]
    chex.assert_trees_all_close(start, policy_loss(fixed, mask=MASK, **batch)[0])
    moved = policy_loss(objective, mask=MASK, coefs={"kl_coef": 0.3, "entropy_coef": 0.2}, **batch)[0]
    fixed = dataclasses.replace(objective, kl_coef=0.3, entropy_coef=0.2)
    chex.assert_trees_all_close(moved, policy_loss(fixed, mask=MASK, **batch)[0])
    assert objective.controls.keys() == {"kl_coef", "entropy_coef"}
    assert grpo().controls == {}


def test_a_correction_weighs_the_surrogate_alone():
    """Weight 1.2 on every token: the surrogate's part of the loss is 1.2 times what it was, the KL's is not."""
    plain = Objective(kl_coef=0.1)
    corrected = dataclasses.replace(plain, correction=SequenceTruncated(cap=1.2))
    batch = inputs(plain)
    batch["sampler_logp"] = batch["old_logp"] - 1.0
    loss, metrics = policy_loss(corrected, mask=MASK, **batch)
    before, others = policy_loss(plain, mask=MASK, **batch)
    kl = before.total - others["loss_policy"].total
    np.testing.assert_allclose(loss.total, 1.2 * others["loss_policy"].total + kl, rtol=1e-5)
    np.testing.assert_allclose(metrics["weight"].mean(), 1.2, rtol=1e-6)


def test_what_is_rejected_leaves_the_denominators():
    """The second row's gap is large: it is in no sum and no weight, as if it had never been drawn."""
    objective = Objective(correction=RejectTokens(limit=0.02), aggregate=token_mean)
    batch = inputs(objective)
    batch["sampler_logp"] = batch["old_logp"].at[1].add(1.0)
    loss, metrics = policy_loss(objective, mask=MASK, **batch)
    rest = MASK.copy()
    rest[1] = False
    expected, _ = policy_loss(objective, mask=rest, **batch)
    chex.assert_trees_all_close(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["kept"].mean(), rest.sum() / MASK.sum(), rtol=1e-6)


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
        (EVERYTHING, {"sampler_logp": None}, (ValueError, r"correction=Chained\(.* needs sampler_logp")),
        (OBJECTIVES["clip_cov"], {}, (ValueError, r"surrogate=ClipCov\(.* asks for selected, which is not given")),
        (
            OBJECTIVES["kl_cov"],
            {},
            (ValueError, r"surrogate\.select\(mask=, old_logp=, advantage=\), called once on the"),
        ),
        (OBJECTIVES["clip_cov"], {"selected": np.ones(4)}, (TypeError, "selected must be boolean")),
    ],
)
def test_bad_inputs_are_refused_while_tracing(objective, change, error):
    batch = {"mask": MASK, **inputs(objective), **change}
    with pytest.raises(error[0], match=error[1]):
        jax.eval_shape(lambda: policy_loss(objective, **batch))


def test_a_kl_that_asks_for_the_log_ratio_gets_that_of_the_new_over_the_old_policy():
    """pi = e^2 pi_old: the weighted k1 against a reference that lies 0.5 below is e^2 times 0.5."""
    batch = {"logp": jnp.array([[-1.0]]), "old_logp": jnp.array([[-3.0]]), "ref_logp": jnp.array([[-1.5]])}
    objective = Objective(kl=RatioWeighted(kl=k1), kl_coef=1.0)
    loss, metrics = policy_loss(objective, mask=jnp.ones((1, 1), bool), advantage=jnp.zeros((1, 1)), **batch)
    np.testing.assert_allclose([loss.mean(), metrics["kl"].mean()], 0.5 * np.exp(2), rtol=1e-6)

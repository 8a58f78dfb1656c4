"""Every preset: the published numbers, the on-policy gradient, and the numbers that others print."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core import policy_loss, presets
from grpo_jax.core.advantage import (
    Gae,
    GroupNormalised,
    ReinforcePlusPlus,
    centred,
    greedy_baseline,
    leave_one_out,
    length_weighted,
    zero_variance_rescaled,
)
from grpo_jax.core.aggregate import ConstantLength, sequence_mean, sequence_sum, token_mean
from grpo_jax.core.correction import OffPolicyMask
from grpo_jax.core.kl import Clamped, RatioWeighted, k1, k3
from grpo_jax.core.objective import Objective
from grpo_jax.core.ratio import per_sequence, per_token, sequence_average, sequence_average_token
from grpo_jax.core.surrogate import CispoClip, GeometricMean, PpoClip, Sapo, reinforce
from grpo_jax.core.value import ClippedValue

GROUP = GroupNormalised(ddof=1, eps=1e-6)
CLIP = PpoClip(low=0.2, high=0.2)
PUBLISHED = {
    "grpo": {"advantage": GROUP, "surrogate": CLIP, "kl": k3, "kl_coef": 0.04, "aggregate": sequence_mean},
    "deepseek_r1": {
        "advantage": GROUP,
        "ratio": per_sequence,
        "surrogate": PpoClip(low=10, high=10),
        "kl": k3,
        "kl_coef": 0.001,
        "aggregate": sequence_mean,
    },
    "ppo_clip": {"advantage": GROUP, "ratio": per_token, "surrogate": CLIP, "aggregate": sequence_mean},
    "dr_grpo": {"advantage": centred, "surrogate": CLIP, "aggregate": ConstantLength(length=3000.0)},
    "dapo": {"advantage": GROUP, "surrogate": PpoClip(low=0.2, high=0.28, dual=10), "aggregate": token_mean},
    "gspo": {
        "advantage": GROUP,
        "ratio": sequence_average,
        "surrogate": PpoClip(low=3e-4, high=4e-4),
        "aggregate": sequence_mean,
    },
    "gspo_token": {
        "advantage": GROUP,
        "ratio": sequence_average_token,
        "surrogate": PpoClip(low=3e-4, high=4e-4),
        "aggregate": sequence_mean,
    },
    "gmpo": {"advantage": GROUP, "surrogate": GeometricMean(low=0.4, high=0.4), "aggregate": sequence_mean},
    "cispo": {"advantage": GROUP, "surrogate": CispoClip(low=1.0, high=4.0), "aggregate": token_mean},
    "sapo": {"advantage": GROUP, "surrogate": Sapo(positive=1.0, negative=1.05), "aggregate": sequence_mean},
    "rloo": {
        "advantage": leave_one_out,
        "surrogate": reinforce,
        "kl": k1,
        "reward_kl_coef": 0.05,
        "aggregate": sequence_sum,
    },
    "reinforce_pp": {
        "advantage": ReinforcePlusPlus(gamma=1.0),
        "surrogate": CLIP,
        "kl": k1,
        "reward_kl_coef": 0.01,
        "aggregate": token_mean,
    },
    "remax": {"advantage": greedy_baseline, "surrogate": reinforce, "aggregate": sequence_sum},
    "opo": {"advantage": length_weighted, "surrogate": reinforce, "aggregate": sequence_sum},
    "gpg": {"advantage": zero_variance_rescaled, "surrogate": reinforce, "aggregate": token_mean},
    "ppo": {
        "advantage": Gae(gamma=1.0, lam=0.95, whiten=True),
        "surrogate": CLIP,
        "kl": k1,
        "reward_kl_coef": 0.02,
        "aggregate": token_mean,
        "value": ClippedValue(clip=0.2),
    },
    "sft": {"advantage": None, "surrogate": reinforce, "aggregate": token_mean},
    "trl_grpo": {
        "advantage": GroupNormalised(ddof=1, eps=1e-4),
        "surrogate": CLIP,
        "kl": RatioWeighted(kl=k3),
        "aggregate": token_mean,
    },
    "verl_grpo": {
        "advantage": GROUP,
        "surrogate": PpoClip(low=0.2, high=0.2, dual=3),
        "kl": Clamped(kl=k3, log_ratio=20.0, value=10.0),
        "aggregate": token_mean,
    },
    "verl_ppo": {
        "advantage": Gae(gamma=1.0, lam=1.0, whiten=True),
        "surrogate": PpoClip(low=0.2, high=0.2, dual=3),
        "kl": Clamped(kl=k3, log_ratio=20.0, value=10.0),
        "aggregate": token_mean,
        "value": ClippedValue(clip=0.5),
    },
}
MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
LENGTH = np.maximum(MASK.sum(-1, keepdims=True), 1)
ROWS = 5
WEIGHTS = {
    "deepseek_r1": np.ones_like(LENGTH) / ROWS,
    "dr_grpo": np.ones_like(LENGTH) / (ROWS * 3000),
    **dict.fromkeys(("rloo", "remax", "opo"), np.ones_like(LENGTH) / ROWS),
    **dict.fromkeys(("grpo", "ppo_clip", "gspo", "gspo_token", "gmpo", "sapo"), 1 / (ROWS * LENGTH)),
}
"""What multiplies -A grad log pi of a token on-policy: 1 / tokens, unless it is said here."""


@pytest.mark.parametrize("name", presets.__all__)
def test_presets_have_the_published_numbers(name):
    assert getattr(presets, name)() == Objective(**PUBLISHED[name])


@pytest.mark.parametrize("name", presets.__all__)
def test_every_preset_names_its_source_and_is_a_value(name):
    preset = getattr(presets, name)
    assert "arXiv:" in preset.__doc__
    assert hash(preset()) == hash(preset())
    assert repr(preset()) == repr(preset())
    assert " at 0x" not in repr(preset())


def test_all_presets_differ():
    assert len({getattr(presets, name)() for name in presets.__all__}) == len(presets.__all__)


@pytest.mark.parametrize("name", presets.__all__)
def test_on_policy_every_preset_is_reinforce_with_its_baseline(name):
    """pi = pi_old = pi_ref: every ratio is 1, no bound acts, every KL term has gradient 0.

    dL/dlogp_bt = -w_bt A_bt with the weight of the preset's mean. A whole-sequence product (DeepSeek-R1) hands each
    token the full weight of its row; the average of a sequence (GSPO, GMPO) divides it by the length, as the mean of
    its tokens does. SAPO's slope at 1 is (4 / tau) tau / 4 = 1.
    """
    objective = getattr(presets, name)()
    rng = np.random.default_rng(0)
    logp = jnp.asarray(np.where(MASK, rng.uniform(-2, -0.1, MASK.shape), np.nan), jnp.float32)
    advantage = np.broadcast_to(rng.normal(size=(len(MASK), 1)), MASK.shape)

    def mean(logp, old_logp):
        reference = old_logp if objective.needs_reference else None
        loss, metrics = policy_loss(
            objective, logp=logp, old_logp=old_logp, ref_logp=reference, mask=MASK, advantage=jnp.asarray(advantage)
        )
        return loss.mean(), metrics

    (value, metrics), slope = jax.value_and_grad(mean, has_aux=True)(logp, logp)
    weight = np.where(MASK, WEIGHTS.get(name, 1 / MASK.sum()), 0.0)
    np.testing.assert_allclose(slope, -weight * advantage, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(metrics["ratio"].mean(), 1.0, rtol=1e-6)
    assert metrics["clip_fraction"].total == 0
    if objective.surrogate in (reinforce,) or name == "cispo":
        expected = -np.sum((weight * advantage * np.asarray(logp))[MASK])
    else:
        scale = {"sapo": np.where(advantage > 0, 2.0, 2 / 1.05), "deepseek_r1": 1 / LENGTH}.get(name, 1.0)
        expected = -np.sum((weight * advantage * scale)[MASK])
    np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-7)


def test_bounds_are_an_ablation_of_grpo():
    expected = dataclasses.replace(presets.grpo(), surrogate=PpoClip(low=0.1, high=0.28), kl_coef=0.0)
    assert presets.ppo_clip(low=0.1, high=0.28) == expected
    with pytest.raises(ValueError, match="low must be a finite number >= 0"):
        presets.ppo_clip(low=-1.0)


def test_numbers_of_nemo_rl_and_skyrl():
    """Their tests of the dual clip (tests/unit/algorithms/test_loss_functions.py, tests/cpu/algorithms/test_losses.py):

    advantages 1, -1, -4 at ratios 0.5, 1 and 10 with a clip of 0.2 and a dual clip of 3 lose -0.5, 1 and 12.
    """
    old = jnp.array([[-1.0, -1.0, -3.0]])
    loss, _ = policy_loss(
        presets.verl_grpo(),
        logp=jnp.array([[-1.69315, -1.0, -0.69741]]),
        old_logp=old,
        mask=jnp.ones((1, 3), bool),
        advantage=jnp.array([[1.0, -1.0, -4.0]]),
    )
    np.testing.assert_allclose(loss.mean(), (-0.5 + 1.0 + 12.0) / 3, rtol=1e-5)


def test_numbers_of_trl_and_verl_for_one_right_answer_of_four():
    """Rewards 1, 0, 0, 0: TRL prints 1.49970 and -0.49990 (eps 1e-4), verl 1.499997 and -0.499999 (eps 1e-6)."""
    reward, valid = jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.ones(4, bool)
    np.testing.assert_allclose(presets.trl_grpo().advantage(reward, valid), [1.4997] + [-0.4999] * 3, atol=5e-6)
    verl = presets.verl_grpo().advantage(reward, valid)
    np.testing.assert_allclose(verl, [1.499997] + [-0.499999] * 3, atol=5e-7)
    np.testing.assert_allclose(presets.rloo().advantage(reward, valid), [1.0] + [-1 / 3] * 3, rtol=1e-6)


def test_losses_of_trl_and_verl_differ_where_their_defaults_do():
    """A < 0 at a ratio of e^2: TRL's loss follows the ratio, verl's stops at its dual clip of 3."""
    batch = {"logp": jnp.array([[-1.0]]), "old_logp": jnp.array([[-3.0]]), "mask": jnp.ones((1, 1), bool)}
    batch["advantage"] = jnp.array([[-2.0]])
    np.testing.assert_allclose(policy_loss(presets.trl_grpo(), **batch)[0].mean(), 2 * math.exp(2), rtol=1e-6)
    np.testing.assert_allclose(policy_loss(presets.verl_grpo(), **batch)[0].mean(), 6.0, rtol=1e-6)


def test_numbers_of_trl_for_the_off_policy_mask():
    """Its test (tests/test_grpo_trainer.py, test_get_off_policy_mask) at a threshold of 1:

    A good row that moved by 2 is kept, a bad one that moved by 0.5 is kept, a bad one that moved by 2 is dropped.
    """
    moved = jnp.broadcast_to(jnp.array([[-2.0], [-0.5], [-2.0]]), (3, 4))
    weight, keep = OffPolicyMask(limit=1.0)(
        jnp.zeros((3, 4)),
        jnp.ones((3, 4), bool),
        logp=moved,
        sampler_logp=jnp.zeros((3, 4)),
        advantage=jnp.broadcast_to(jnp.array([[1.0], [-1.0], [-1.0]]), (3, 4)),
    )
    np.testing.assert_array_equal(weight, np.repeat([[1.0], [1.0], [0.0]], 4, axis=1))
    assert keep.all()


def test_supervised_fine_tuning_has_a_sequence_mean_too():
    """Every demonstration the same, whatever its length: the mean over rows of the mean over their tokens."""
    logp = np.random.default_rng(0).uniform(-2, -0.1, MASK.shape)
    objective = dataclasses.replace(presets.sft(), aggregate=sequence_mean)
    loss, _ = policy_loss(objective, logp=jnp.asarray(logp), mask=MASK, advantage=jnp.ones(MASK.shape))
    rows = [-logp[b][MASK[b]].mean() for b in range(len(MASK)) if MASK[b].any()]
    np.testing.assert_allclose(loss.mean(), np.mean(rows), rtol=1e-6)

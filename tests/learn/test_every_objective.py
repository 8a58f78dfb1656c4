"""Every objective through the pure step on a fixed rollout: experience, then two minibatches."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.core import Objective, presets
from grpo_jax.core.advantage import GroupBaselineWhitened, PassAtK, TermNormalised
from grpo_jax.core.control import AdaptiveEntropy, AdaptiveKl
from grpo_jax.core.correction import OffPolicyMask, RejectSequences, SequenceBand, TokenTruncated
from grpo_jax.core.kl import RatioWeighted, StraightThrough, k1, k2, k3
from grpo_jax.core.surrogate import CispoCap, ClipCov, Dppo, EntropySelected, KlCov, Vespo, binary_tv
from grpo_jax.learn import score, token_batch
from grpo_jax.learn.losses import critic_loss
from grpo_jax.learn.state import init_state
from grpo_jax.learn.step import update
from grpo_jax.models import init
from grpo_jax.testing.tiny import tiny_prompts
from grpo_jax.types import Grades, Rollout
from tests.learn.small import MODEL, learner
from tests.rollout.small import quick_jit

P, G, T, V = 4, 3, 7, 23
BATCH, STEP = quick_jit(token_batch, static_argnums=0), quick_jit(update, static_argnums=0)
SCORE = quick_jit(score, static_argnums=0)
ORDER = np.array([[0, 2], [3, 1]], np.int32)
OBJECTIVES = {
    **{name: getattr(presets, name)() for name in presets.__all__ if name != "sft"},
    "adaptive": Objective(
        kl_coef=AdaptiveKl(initial=0.1, target=0.01, horizon=100), entropy_coef=AdaptiveEntropy(target=9.0, initial=0.1)
    ),
    "clip_cov": Objective(surrogate=ClipCov(share=0.1, lowest=0.0)),
    "kl_cov": Objective(surrogate=KlCov(share=0.1)),
    "entropy_selected": Objective(surrogate=EntropySelected(share=0.25)),
    "vespo": Objective(surrogate=Vespo()),
    "dppo": Objective(surrogate=Dppo(limit=0.1, divergence=binary_tv)),
    "cispo_cap": Objective(surrogate=CispoCap(cap=5.0)),
    "truncated": Objective(correction=TokenTruncated(cap=2.0)),
    "banded": Objective(correction=SequenceBand(low=0.0, high=3.0)),
    "rejected": Objective(correction=RejectSequences(limit=0.5)),
    "off_policy": Objective(correction=OffPolicyMask(limit=0.5)),
    "straight": Objective(kl=StraightThrough(value=k3, gradient=k2), kl_coef=0.1),
    "weighted": Objective(kl=RatioWeighted(kl=k3), kl_coef=0.1),
    "whitened": Objective(advantage=GroupBaselineWhitened(), kl=k1, reward_kl_coef=0.1),
    "terms": Objective(advantage=TermNormalised()),
    "pass_at_2": Objective(advantage=PassAtK(k=2, threshold=1.0)),
}
objectives = pytest.mark.parametrize("name", OBJECTIVES)


@pytest.fixture(scope="module")
def params():
    return init(MODEL, jax.random.key(0))


def drawn(params):
    """Completions of random lengths, as this policy would score them, with rewards that differ in every group."""
    keys = jax.random.split(jax.random.key(2), 3)
    tokens = jax.random.randint(keys[0], (P, G, T), 0, V)
    mask = jnp.arange(T) < jax.random.randint(keys[1], (P, G, 1), 1, T + 1)
    logp = jnp.where(mask, jax.jit(score, static_argnums=0)(MODEL, params, tiny_prompts(), tokens).logp, 0)
    term = jax.random.uniform(keys[2], (P, G, 2))
    weight = jnp.array([1.0, 0.5])
    rollout = Rollout(tokens=tokens, mask=mask, logp=logp, ended=mask[..., -1] == 0)
    return rollout, Grades(
        reward=(term * weight).sum(-1),
        valid=jnp.ones((P, G), bool).at[1, 0].set(False),
        term_reward=term,
        term_weight=weight,
        greedy_reward=jnp.full(P, 0.5),
    )


@objectives
def test_every_objective_trains(params, name):
    """Two updates, so that ratios differ from 1. Everything is finite, and whatever learns has moved."""
    objective = OBJECTIVES[name]
    one = learner(objective, minibatches=2)
    rollout, grades = drawn(params)
    state = init_state(one, params)
    batch = BATCH(one, state, tiny_prompts(), rollout, grades)
    after, metrics = STEP(one, state, batch, ORDER)
    assert {key: float(x) for key, x in metrics.items() if not np.isfinite(x)} == {}
    chex.assert_tree_all_finite(after)
    assert metrics["grad_norm"] > 0
    assert np.abs(after.params["embed"] - params["embed"]).max() > 1e-3
    assert (after.reference is not None) == objective.needs_reference
    if objective.needs_reference:
        chex.assert_trees_all_equal(after.reference, params)
    assert (after.critic is not None) == objective.needs_critic
    if objective.needs_critic:
        assert np.abs(after.critic.params["output"]).max() > 1e-3
    assert after.controls.keys() == objective.controls.keys()
    # A completion without a valid reward is in no mean.
    assert not batch.mask[1, 0].any()
    np.testing.assert_array_equal(np.where(batch.mask, 0.0, batch.advantage), 0.0)


@pytest.mark.parametrize("name", ["ppo", "clip_cov", "kl_cov", "entropy_selected", "adaptive", "off_policy"])
def test_micro_batches_change_nothing(params, name):
    """Statistics of the batch are taken before it is cut; the critic's gradient adds up as the policy's does."""
    rollout, grades = drawn(params)
    results = []
    for micro in (None, 1):
        one = learner(OBJECTIVES[name], minibatches=2, micro_prompts=micro)
        state = init_state(one, params)
        # Any two scalings of Adam agree where its moments are large; plain descent shows the gradient itself.
        batch = BATCH(one, state, tiny_prompts(), rollout, grades)
        one = dataclasses.replace(one, optimizer=optax.sgd(0.1))
        state = init_state(one, params)
        results.append(STEP(one, state, batch, ORDER))
    chex.assert_trees_all_close(*results, rtol=2e-4, atol=2e-6)


def test_adaptive_coefficients_move_by_what_the_step_measured(params):
    """The KL is 0 in the first minibatch and tiny in the second: below target, so the coefficient falls by 20%.

    11 completions of a horizon of 100 count. The entropy is below its target of 9, so its coefficient rises by 0.005.
    """
    one = learner(OBJECTIVES["adaptive"], minibatches=2)
    rollout, grades = drawn(params)
    state = init_state(one, params)
    batch = BATCH(one, state, tiny_prompts(), rollout, grades)
    after, metrics = STEP(one, dataclasses.replace(state), batch, ORDER)
    error = np.clip(float(metrics["kl"]) / 0.01 - 1, -0.2, 0.2)
    np.testing.assert_allclose(after.controls["kl_coef"], 0.1 * (1 + error * 11 / 100), rtol=1e-6)
    np.testing.assert_allclose(after.controls["entropy_coef"], 0.105, rtol=1e-6)
    np.testing.assert_allclose([metrics["kl_coef"], metrics["entropy_coef"]], 0.1, rtol=1e-6)


def test_an_entropy_above_its_target_switches_the_bonus_off(params):
    objective = dataclasses.replace(
        OBJECTIVES["adaptive"], entropy_coef=AdaptiveEntropy(target=0.5, initial=0.1), kl_coef=0.0
    )
    rollout, grades = drawn(params)
    one = learner(objective)
    state = init_state(one, params)
    batch = BATCH(one, state, tiny_prompts(), rollout, grades)
    after, metrics = STEP(one, state, batch, ORDER.reshape(1, -1))
    assert metrics["entropy_coef"] == 0.0
    np.testing.assert_allclose(after.controls["entropy_coef"], 0.095, rtol=1e-6)


def test_the_kl_in_the_reward_of_ppo_is_paid_token_by_token(params):
    """Against a reference that has moved, every token's reward carries its own k1, and the last one the score."""
    objective = dataclasses.replace(presets.ppo(), reward_kl_coef=0.5)
    one = learner(objective)
    rollout, grades = drawn(params)
    state = init_state(one, params)
    other = jax.tree.map(lambda x: x + 0.05 * jnp.sign(x), params)
    state = dataclasses.replace(state, reference=other)
    batch = BATCH(one, state, tiny_prompts(), rollout, grades)
    reference = SCORE(one.model, other, tiny_prompts(), rollout.tokens).logp
    kl = np.where(batch.mask, rollout.logp - reference, 0.0)
    assert np.abs(kl).max() > 0.01
    # The critic says 0 everywhere, so with lambda 0.95 and gamma 1 A_t = sum_u 0.95^(u - t) reward_u before whitening.
    length = np.asarray(batch.mask.sum(-1))
    reward = -0.5 * kl
    for p, g in np.ndindex(P, G):
        if length[p, g]:
            reward[p, g, length[p, g] - 1] += grades.reward[p, g]
    expected = np.zeros((P, G, T))
    for t in range(T):
        for u in range(t, T):
            expected[..., t] += 0.95 ** (u - t) * reward[..., u]
    np.testing.assert_allclose(batch.returns, np.where(batch.mask, expected, 0.0), rtol=1e-4, atol=1e-5)


def test_the_value_of_a_token_is_that_of_the_state_it_is_drawn_in(params):
    """Another t-th token changes the values behind it, and neither its own nor those before."""
    one = learner(presets.ppo())
    rollout, grades = drawn(params)
    state = init_state(one, params)
    output = jax.random.normal(jax.random.key(9), state.critic.params["output"].shape)
    critic = dataclasses.replace(state.critic, params={**state.critic.params, "output": output})
    state = dataclasses.replace(state, critic=critic)
    value = BATCH(one, state, tiny_prompts(), rollout, grades).value
    other = dataclasses.replace(rollout, tokens=rollout.tokens.at[..., 3].set((rollout.tokens[..., 3] + 1) % V))
    changed = BATCH(one, state, tiny_prompts(), other, grades).value
    np.testing.assert_allclose(changed[..., :4], value[..., :4], rtol=1e-5, atol=1e-6)
    assert np.abs(changed[..., 4:] - value[..., 4:]).min(axis=(0, 1)).max() > 1e-3


def test_the_loss_of_the_critic_by_hand(params):
    """It says 0, so its clip of 0.2 never acts: half the mean of the squared returns over scored tokens."""
    one = learner(presets.ppo())
    rollout, grades = drawn(params)
    state = init_state(one, params)
    batch = BATCH(one, state, tiny_prompts(), rollout, grades)
    loss, metrics = critic_loss(one, state.critic.params, batch)
    np.testing.assert_allclose(loss.mean(), 0.5 * np.mean(np.square(batch.returns)[batch.mask]), rtol=1e-5)
    assert metrics["value_clip_fraction"].total == 0


def test_the_critic_does_not_touch_the_policy(params):
    """Ten times its learning rate changes its own parameters, and nothing of the policy's."""
    rollout, grades = drawn(params)
    after = []
    for rate in (1e-3, 1e-2):
        one = learner(presets.ppo(), critic_optimizer=optax.adam(rate))
        state = init_state(one, params)
        batch = BATCH(one, state, tiny_prompts(), rollout, grades)
        after.append(STEP(one, state, batch, ORDER.reshape(1, -1))[0])
    chex.assert_trees_all_equal(after[0].params, after[1].params)
    slow, fast = (np.abs(state.critic.params["output"]).max() for state in after)
    np.testing.assert_allclose(fast, 10 * slow, rtol=1e-3)

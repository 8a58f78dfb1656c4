"""The pure step: its gradient, its cuts into minibatches and micro-batches, and what it does not compute."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.core import PpoClip, deepseek_r1, exact, grpo, ppo_clip, sft
from grpo_jax.core.naming import show
from grpo_jax.learn import score, token_batch
from grpo_jax.learn.layout import padded
from grpo_jax.learn.state import init_state, renew_reference
from grpo_jax.learn.step import minibatch_order, update
from grpo_jax.models import head, hidden_states, init, unpacked
from grpo_jax.testing.tiny import tiny_config, tiny_prompts
from grpo_jax.types import Grades, Rollout, TokenBatch
from tests.learn.small import MODEL, learner, policy_gradient
from tests.rollout.small import quick_jit

P, G, T, V = 4, 3, 7, 23
GRADIENT, STEP = jax.jit(policy_gradient, static_argnums=0), jax.jit(update, static_argnums=0)
BATCH = quick_jit(token_batch, static_argnums=0)


def moved(params, scale=0.05):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    return jax.tree.unflatten(
        tree, [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


@pytest.fixture(scope="module")
def params():
    return init(MODEL, jax.random.key(0))


@pytest.fixture(scope="module")
def batch(params):
    keys = jax.random.split(jax.random.key(1), 4)
    length = jax.random.randint(keys[0], (P, G), 1, T + 1)
    old = jax.random.normal(keys[1], (P, G, T)) * 0.5 - 3.0
    return TokenBatch(
        prompt=tiny_prompts(),
        tokens=jax.random.randint(keys[2], (P, G, T), 0, V),
        mask=jnp.arange(T) < length[..., None],
        advantage=jax.random.normal(keys[3], (P, G, T)),
        old_logp=old,
        ref_logp=old - 0.1,
    )


def on_policy(batch):
    return dataclasses.replace(batch, old_logp=None, ref_logp=None)


def log_probs(params, batch):
    """Log-probs of the drawn tokens the plain way, all logits at once."""
    logits = hidden_states(MODEL, params, unpacked(batch.prompt, batch.tokens)) @ head(MODEL, params)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), batch.tokens[..., None], -1)[..., 0]


def test_on_policy_the_gradient_is_reinforce_averaged_per_completion_and_then_over_the_batch(params, batch):
    """At ratio 1: d loss = -(1 / rows) sum_rows (1 / |row|) sum_t A_t d log pi_t, whatever the clip."""
    batch = on_policy(batch)

    def reinforce(params):
        row = jnp.mean(log_probs(params, batch) * batch.advantage, -1, where=batch.mask)
        return -row.mean()

    got, metrics = GRADIENT(learner(ppo_clip()), params, None, batch)
    chex.assert_trees_all_close(got, jax.jit(jax.grad(reinforce))(params), atol=1e-6)
    assert float(metrics["ratio"].mean()) == 1.0
    assert float(metrics["clip_fraction"].total) == 0.0


def test_supervised_gradient_is_the_mean_negative_log_likelihood(params, batch):
    batch = dataclasses.replace(on_policy(batch), advantage=jnp.ones((P, G, T)))
    expected = jax.jit(jax.grad(lambda p: -jnp.mean(log_probs(p, batch), where=batch.mask)))(params)
    got, _ = GRADIENT(learner(sft()), params, None, batch)
    chex.assert_trees_all_close(got, expected, atol=1e-6)


@pytest.mark.parametrize("objective", [grpo(), deepseek_r1(), dataclasses.replace(grpo(), entropy_coef=0.1)], ids=show)
@pytest.mark.parametrize("micro", [1, 2])
def test_micro_batches_change_neither_loss_nor_gradient(params, batch, objective, micro):
    whole, metrics = GRADIENT(learner(objective), params, None, batch)
    cut, cut_metrics = GRADIENT(learner(objective, micro_prompts=micro), params, None, batch)
    chex.assert_trees_all_close(cut, whole, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(cut_metrics, metrics, rtol=1e-5, atol=1e-6)


def test_a_batch_without_a_scored_token_leaves_gradients_zero(params, batch):
    empty = dataclasses.replace(batch, mask=jnp.zeros((P, G, T), bool), advantage=jnp.full((P, G, T), jnp.nan))
    got, metrics = GRADIENT(learner(grpo()), params, None, empty)
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(got))
    assert float(metrics["loss"].mean()) == 0.0


def test_minibatches_and_epochs_are_one_update_after_another(params, batch):
    """The scan over `order` equals separate steps on the rows it names, in its order."""
    several = learner(grpo(), minibatches=2, epochs=2)
    state = init_state(several, params)
    order = minibatch_order(3, 5, prompts=P, minibatches=2, epochs=2)
    got, _ = STEP(several, state, batch, order)
    single, expected = learner(grpo()), state
    for row in order:
        part = jax.tree.map(lambda x, row=row: x[row], batch)
        expected, _ = STEP(single, expected, part, np.arange(2, dtype=np.int32)[None])
    chex.assert_trees_all_close(got.params, expected.params, atol=1e-6)
    assert int(got.step) == 1
    assert int(expected.step) == 4


def test_one_step_is_one_optax_update(params, batch):
    one = learner(grpo())
    state, metrics = STEP(one, init_state(one, params), batch, np.arange(P, dtype=np.int32)[None])
    gradients, _ = GRADIENT(one, params, None, batch)
    updates, _ = one.optimizer.update(gradients, one.optimizer.init(params), params)
    chex.assert_trees_all_close(state.params, optax.apply_updates(params, updates), atol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradients), rtol=1e-5)


def test_minibatch_order_visits_every_prompt_once_per_epoch_and_depends_on_seed_and_step():
    order = minibatch_order(0, 1, prompts=8, minibatches=4, epochs=3)
    assert order.shape == (12, 2)
    for epoch in order.reshape(3, 8):
        assert sorted(epoch) == list(range(8))
    assert len({tuple(epoch) for epoch in order.reshape(3, 8)}) == 3
    again = minibatch_order(0, 1, prompts=8, minibatches=4, epochs=3)
    np.testing.assert_array_equal(order, again)
    for other in ((0, 2), (1, 1)):
        assert (minibatch_order(*other, prompts=8, minibatches=4, epochs=3) != order).any()


def test_a_micro_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="micro_prompts: 3 does not divide the 4 prompts"):
        padded(4, 2, 3, 5, micro_prompts=3)


def rollout_and_rewards():
    keys = jax.random.split(jax.random.key(2), 3)
    tokens = jax.random.randint(keys[0], (P, G, T), 0, V)
    mask = jnp.arange(T) < jax.random.randint(keys[1], (P, G, 1), 1, T + 1)
    rollout = Rollout(tokens=tokens, mask=mask, logp=jnp.full((P, G, T), -3.0) * mask, ended=jnp.ones((P, G), bool))
    reward = jax.random.normal(keys[2], (P, G))
    return rollout, Grades(reward=reward, valid=jnp.ones((P, G), bool))


def products(function, *arguments):
    """The number of matrix products that a function traces to."""
    return str(jax.make_jaxpr(function, static_argnums=0)(*arguments)).count("dot_general")


def test_nothing_is_computed_that_the_objective_does_not_use(params):
    rollout, grades = rollout_and_rewards()
    free = learner(ppo_clip())
    state = init_state(free, params)
    assert state.reference is None
    assert products(token_batch, free, state, tiny_prompts(), rollout, grades) == 0
    batch = BATCH(free, state, tiny_prompts(), rollout, grades)
    assert batch.old_logp is None
    assert batch.ref_logp is None
    forward = products(lambda one, p: score(one.model, p, tiny_prompts(), rollout.tokens).logp, free, params)
    for objective, changes in ((grpo(), {}), (ppo_clip(), {"epochs": 2}), (deepseek_r1(), {"epochs": 2})):
        one = learner(objective, **changes)
        forwards = (objective.kl_coef > 0) + (one.updates.updates > 1)
        state = init_state(one, params)
        assert products(token_batch, one, state, tiny_prompts(), rollout, grades) == forwards * forward


def test_old_and_reference_log_probs_are_those_of_their_policies(params):
    rollout, grades = rollout_and_rewards()
    one = learner(grpo(), epochs=2, micro_prompts=2)
    state = dataclasses.replace(init_state(one, params), reference=moved(params))
    batch = BATCH(one, state, tiny_prompts(), rollout, grades)
    plain = jax.jit(log_probs)
    chex.assert_trees_all_close(batch.old_logp, plain(params, batch), atol=2e-6)
    chex.assert_trees_all_close(batch.ref_logp, plain(moved(params), batch), atol=2e-6)


def test_the_exact_kl_in_the_loss_reads_the_reference_over_the_whole_vocabulary(params):
    rollout, grades = rollout_and_rewards()
    one = learner(dataclasses.replace(grpo(), kl=exact, kl_coef=0.5), micro_prompts=2)
    state = dataclasses.replace(init_state(one, params), reference=moved(params))
    batch = BATCH(one, state, tiny_prompts(), rollout, grades)

    def expected(params):
        hidden = [
            hidden_states(MODEL, p, unpacked(batch.prompt, batch.tokens)) @ head(MODEL, p)
            for p in (params, state.reference)
        ]
        logp, ref = (jax.nn.log_softmax(x) for x in hidden)
        kl = (jnp.exp(logp) * (logp - ref)).sum(-1)
        reinforce = log_probs(params, batch) * batch.advantage
        return jnp.mean(jnp.mean(0.5 * kl - reinforce, -1, where=batch.mask))

    got, metrics = GRADIENT(one, params, state.reference, batch)
    chex.assert_trees_all_close(got, jax.jit(jax.grad(expected))(params), atol=1e-6)
    assert float(metrics["kl"].mean()) > 1e-3


def test_kl_in_the_reward_is_taken_from_the_score_before_the_group_is_normalised(params):
    rollout, grades = rollout_and_rewards()
    one = learner(dataclasses.replace(grpo(), kl_coef=0.0, reward_kl_coef=0.5))
    state = dataclasses.replace(init_state(one, params), reference=moved(params))
    batch = BATCH(one, state, tiny_prompts(), rollout, grades)
    ref_logp = jax.jit(log_probs)(moved(params), batch)
    kl = jnp.sum(one.objective.kl(rollout.logp, ref_logp), -1, where=rollout.mask)
    advantage = one.objective.advantage(grades.reward - 0.5 * kl, grades.valid)
    chex.assert_trees_all_close(batch.advantage[..., 0], advantage, atol=1e-5)
    # The loss reports the KL, and does not contain it.
    np.testing.assert_allclose(batch.ref_logp[batch.mask], ref_logp[batch.mask], rtol=1e-4)
    assert float(jnp.abs(advantage - one.objective.advantage(grades.reward, grades.valid)).max()) > 1e-3


def test_a_completion_without_a_reward_is_in_no_mask_and_no_group_mean(params):
    rollout, grades = rollout_and_rewards()
    valid = grades.valid.at[0, 1].set(False).at[2].set(False)
    reward = jnp.where(valid, grades.reward, jnp.nan)
    one = learner(ppo_clip())
    batch = BATCH(one, init_state(one, params), tiny_prompts(), rollout, Grades(reward=reward, valid=valid))
    assert not batch.mask[0, 1].any()
    assert not batch.mask[2].any()
    first = np.asarray(grades.reward[0])[[0, 2]]
    expected = (first - first.mean()) / (first.std(ddof=1) + 1e-6)
    np.testing.assert_allclose(np.asarray(batch.advantage)[0, [0, 2], 0], expected, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(batch.advantage)[2], 0.0)


def test_the_reference_becomes_the_current_policy(params):
    one = learner(grpo())
    state = dataclasses.replace(init_state(one, params), params=moved(params))
    assert not np.allclose(state.reference["embed"], state.params["embed"])
    chex.assert_trees_all_equal(renew_reference(state, 1.0).reference, state.params)


@pytest.mark.parametrize("objective", [ppo_clip(), dataclasses.replace(grpo(), kl=exact, entropy_coef=0.1)], ids=show)
def test_no_logits_of_the_whole_batch_exist_in_the_compiled_step(objective):
    """The compiled program's memory stays below one float32 [P, G, T, V], and no buffer has its shape."""
    model = tiny_config(vocab=4096, hidden=8, head_width=4, mlp=8, heads=2, layers=1, logprob_chunk=4)
    P, G, T = 2, 4, 128
    big = learner(objective, model=model, optimizer=optax.sgd(1e-2))
    state = jax.eval_shape(lambda: init_state(big, init(model, jax.random.key(0))))
    shape = jax.ShapeDtypeStruct
    real, whole = shape((P, G, T), jnp.float32), shape((P, G, T), jnp.int32)
    prompt = jax.eval_shape(lambda: tiny_prompts((5, 3), vocab=4096))
    batch = TokenBatch(
        prompt=prompt,
        tokens=whole,
        mask=shape((P, G, T), bool),
        advantage=real,
        ref_hidden=shape((P, G, T, 8), jnp.float32) if objective.full_vocabulary else None,
    )
    compiled = STEP.lower(big, state, batch, shape((1, P), jnp.int32)).compile()
    logits = P * G * T * 4096 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 0.6 * logits
    text = compiled.as_text()
    assert f"f32[{P},{G},{T},4096]" not in text
    assert f"f32[{P * G * T},4096]" not in text
    assert "4096]" in text


def test_the_memory_test_would_see_logits_of_the_whole_batch():
    """The same reading finds the buffer in a program that does hold it."""
    plain = jax.jit(jax.grad(lambda h, w: jax.nn.log_softmax(h @ w).max(-1).sum(), argnums=1))
    compiled = plain.lower(
        jax.ShapeDtypeStruct((1024, 8), jnp.float32), jax.ShapeDtypeStruct((8, 4096), jnp.float32)
    ).compile()
    assert "f32[1024,4096]" in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes > 0.6 * 1024 * 4096 * 4


def test_objectives_that_are_equal_do_not_compile_again(params, batch):
    calls = []

    def counted(one, params, batch):
        calls.append(1)
        return policy_gradient(one, params, None, batch)[1]["loss"].mean()

    step, optimizer = jax.jit(counted, static_argnums=0), optax.sgd(0.1)
    for clip in (0.2, 0.2, 0.3):
        objective = dataclasses.replace(ppo_clip(), surrogate=PpoClip(low=clip, high=clip))
        step(learner(objective, model=tiny_config(), optimizer=optimizer), params, batch)
    assert len(calls) == 2


def test_scores_and_losses_know_the_models_bound_on_its_logits(batch):
    """With a final cap c the policy is softmax(c tanh(z / c)), in scoring as in the loss."""
    model = tiny_config(final_cap=1.5)
    one = learner(ppo_clip(), model=model)
    params = jax.tree.map(lambda x: 3 * x, init(model, jax.random.key(0)))
    batch = on_policy(batch)
    logits = hidden_states(model, params, unpacked(batch.prompt, batch.tokens)) @ head(model, params)
    capped = jax.nn.log_softmax(1.5 * jnp.tanh(logits / 1.5))
    expected = jnp.take_along_axis(capped, batch.tokens[..., None], -1)[..., 0]
    uncapped = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.tokens[..., None], -1)[..., 0]
    assert np.abs(expected - uncapped).max() > 0.05
    got = score(model, params, batch.prompt, batch.tokens).logp
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    _, metrics = GRADIENT(one, params, None, batch)
    np.testing.assert_allclose(metrics["entropy"].total, -jnp.sum(expected, where=batch.mask), rtol=1e-5)

"""Training adapters: they alone change, the weights under them are the reference, and every part of a run knows it."""

import dataclasses
import json
import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Spec

from grpo_jax.cli.build import trained_params
from grpo_jax.config import ConfigError, to_dict
from grpo_jax.config.load import from_dict
from grpo_jax.core import exact, grpo, ppo, sft
from grpo_jax.learn import score, token_batch
from grpo_jax.learn.state import init_state, policy_params, reference_params
from grpo_jax.learn.step import minibatch_order, update
from grpo_jax.mesh import fetch, make_mesh, sharding
from grpo_jax.models import Lora, init, init_lora
from grpo_jax.models.adapters import TARGETS
from grpo_jax.models.settings import Adapted
from grpo_jax.run import train
from grpo_jax.run.compiled import (
    compiled_batch,
    compiled_keys,
    compiled_publish,
    compiled_sample,
    compiled_state,
    compiled_update,
)
from grpo_jax.testing.tiny import tiny_prompts
from grpo_jax.types import Grades, Rollout, TokenBatch
from tests.learn import small
from tests.mesh import test_step_on_mesh as on_mesh
from tests.rollout.small import merge, quick_jit, random_params
from tests.run.test_loop import must_resume, rows, stop_at

P, G, T = 4, 3, 7
MODEL = small.MODEL
LORA = Lora(rank=2, alpha=3.0)
PROMPT = tiny_prompts()
BATCH, STEP = quick_jit(token_batch, static_argnums=0), quick_jit(update, static_argnums=0)
SCORE = quick_jit(score, static_argnums=0, static_argnames="micro_prompts")
GRADIENT = quick_jit(small.policy_gradient, static_argnums=0)
KEY = jax.random.key(3)


def learner(objective, **changes):
    return small.learner(objective, **{"lora": LORA, **changes})


@pytest.fixture(scope="module")
def params():
    return init(MODEL, jax.random.key(0))


@pytest.fixture(scope="module")
def adapters():
    """Adapters as training leaves them."""
    new = init_lora(MODEL, LORA, KEY)
    return {t: {"a": f["a"], "b": 0.3 * jax.random.normal(jax.random.key(i), f["b"].shape)}
            for i, (t, f) in enumerate(new.items())}  # fmt: skip


def drawn():
    """A rollout and its rewards."""
    keys = jax.random.split(jax.random.key(2), 3)
    tokens = jax.random.randint(keys[0], (P, G, T), 0, MODEL.vocab)
    mask = jnp.arange(T) < jax.random.randint(keys[1], (P, G, 1), 1, T + 1)
    rollout = Rollout(tokens=tokens, mask=mask, logp=jnp.full((P, G, T), -3.0) * mask, ended=jnp.ones((P, G), bool))
    return rollout, Grades(reward=jax.random.normal(keys[2], (P, G)), valid=jnp.ones((P, G), bool))


def order(minibatches):
    return minibatch_order(0, 0, prompts=P, minibatches=minibatches, epochs=1)


def test_the_state_holds_the_weights_once_and_moments_of_the_adapters_alone(params):
    state = init_state(learner(grpo()), params, KEY)
    assert state.reference is None
    assert reference_params(state) is state.base
    assert all(jax.tree.leaves(jax.tree.map(lambda held, given: held is given, state.base, params)))
    chex.assert_trees_all_equal(state.params, init_lora(MODEL, LORA, KEY))
    moments = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    chex.assert_trees_all_equal_shapes(moments.mu, state.params)
    chex.assert_trees_all_equal_shapes(moments.nu, state.params)
    weights = sum(x.size for x in jax.tree.leaves(params))
    held = sum(x.size for x in jax.tree.leaves(state) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))
    assert held == weights + 3 * sum(x.size for x in jax.tree.leaves(state.params)) + 2  # a step and Adam's count


def test_adapters_need_a_key(params):
    with pytest.raises(ValueError, match="key: None; adapters are drawn from it"):
        init_state(learner(grpo()), params)


def test_new_adapters_score_as_the_base_does_bit_for_bit_and_the_first_kl_is_zero(params):
    """Old log-probs, reference log-probs, and the ratio and the KL that the loss sees in its own program."""
    one = learner(grpo(), minibatches=2)
    state = init_state(one, params, KEY)
    rollout, grades = drawn()
    batch = BATCH(one, state, PROMPT, rollout, grades)
    np.testing.assert_array_equal(batch.old_logp, batch.ref_logp)
    np.testing.assert_array_equal(
        batch.old_logp, SCORE(MODEL, params, PROMPT, rollout.tokens, micro_prompts=P // 2).logp
    )
    _, metrics = GRADIENT(one, state.params, params, batch, base=params)
    assert float(metrics["kl"].mean()) < 1e-12
    np.testing.assert_allclose(float(metrics["ratio"].mean()), 1.0, atol=1e-6)
    _, plain = GRADIENT(learner(grpo(), lora=None, minibatches=2), params, params, batch)
    np.testing.assert_allclose(metrics["loss"].mean(), plain["loss"].mean(), atol=1e-7)


@pytest.mark.parametrize("micro", [None, 1])
def test_the_gradient_of_a_step_is_the_dense_one_projected(params, adapters, micro):
    """dA = s dW B^T and dB = s A^T dW for the MLP's matrices, which are tables as they are; s = 3 / 2."""
    one, rollout_and_rewards = learner(grpo(), minibatches=2, micro_prompts=micro), drawn()
    state = dataclasses.replace(init_state(one, params, KEY), params=adapters)
    batch = BATCH(one, state, PROMPT, *rollout_and_rewards)
    got, metrics = GRADIENT(one, adapters, params, batch, base=params)
    dense, same = GRADIENT(dataclasses.replace(one, lora=None), merge(params, adapters, LORA), params, batch)
    np.testing.assert_allclose(metrics["loss"].mean(), same["loss"].mean(), rtol=1e-5)
    assert float(metrics["kl"].mean()) > 1e-3
    for target in ("gate", "up", "down"):
        dw = dense["layers"]["down"] if target == "down" else dense["layers"]["mlp"][target]
        a, b = adapters[target]["a"], adapters[target]["b"]
        chex.assert_trees_all_close(got[target]["a"], 1.5 * jnp.einsum("lio,lro->lir", dw, b), rtol=1e-3, atol=1e-6)
        chex.assert_trees_all_close(got[target]["b"], 1.5 * jnp.einsum("lir,lio->lro", a, dw), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "objective",
    [
        grpo(),
        dataclasses.replace(grpo(), kl=exact),
        dataclasses.replace(grpo(), kl=exact, kl_coef=0.0, reward_kl_coef=0.1),
    ],
    ids=["k3", "exact", "exact in the reward"],
)
def test_a_step_changes_the_adapters_alone(params, adapters, objective):
    """In two updates: the first moves B alone, because A has no gradient where B is 0."""
    one = learner(objective, minibatches=2)
    state = init_state(one, params, KEY)
    batch = BATCH(one, state, PROMPT, *drawn())
    first, _ = STEP(learner(objective), state, batch, order(1))
    for target, factors in first.params.items():
        np.testing.assert_array_equal(factors["a"], state.params[target]["a"], err_msg=target)
        assert np.abs(factors["b"]).max() > 5e-3
    after, metrics = STEP(one, state, batch, order(2))
    chex.assert_trees_all_equal(after.base, params)
    assert after.reference is None
    moved = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), after.params, state.params)
    assert min(jax.tree.leaves(moved)) > 1e-3
    assert all(np.isfinite(x) for x in metrics.values())
    # The reference is the base, wherever the adapters have gone.
    later = dataclasses.replace(state, params=adapters)
    again = BATCH(one, later, PROMPT, *drawn())
    assert float(jnp.abs(again.old_logp - batch.old_logp).max()) > 1e-2
    for name in ("ref_logp", "ref_hidden"):
        chex.assert_trees_all_equal(getattr(again, name), getattr(batch, name))


def test_a_critic_beside_adapters_is_a_whole_decoder_that_learns(params):
    one = learner(ppo(), minibatches=2)
    state = init_state(one, params, KEY)
    chex.assert_trees_all_equal(state.critic.params["decoder"], params)
    batch = BATCH(one, state, PROMPT, *drawn())
    after, _ = STEP(one, state, batch, order(2))
    assert np.abs(after.critic.params["output"]).max() > 1e-3
    assert np.abs(after.critic.params["decoder"]["embed"] - params["embed"]).max() > 1e-3
    chex.assert_trees_all_equal(after.base, params)


def whole_step(one, mesh):
    """Everything that a step computes from adapters that are not new, on `mesh` or on a single device without one."""
    new = fetch(init_lora(one.model, one.lora, KEY))
    rng = np.random.default_rng(0)
    used = {t: {"a": f["a"], "b": rng.normal(size=f["b"].shape).astype(np.float32) * 0.3} for t, f in new.items()}

    def place(x, *axes):
        return x if mesh is None else jax.device_put(x, sharding(mesh, one.model.rules, *axes))

    state = on_mesh.run(compiled_state, one, on_mesh.PARAMS)
    layout = state.params if mesh is not None else None
    used = used if layout is None else jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), used, layout)
    state = dataclasses.replace(state, params=used)
    prompt = place(on_mesh.PROMPT, "prompt")
    rollout = on_mesh.run(
        compiled_sample,
        one.model,
        on_mesh.run(compiled_publish, one.model, policy_params(one, state)),
        prompt,
        place(compiled_keys(0, 3, np.arange(on_mesh.P, dtype=np.int32), group=on_mesh.G), "prompt", "sample"),
        max_tokens=on_mesh.T,
        eos_ids=(3, 11),
        check_every=3,
    )
    grades = place(on_mesh.rewards(*fetch((rollout.tokens, rollout.mask))), "prompt", "sample")
    batch = on_mesh.run(compiled_batch, one, state, prompt, rollout, grades)
    steps = minibatch_order(0, 3, prompts=on_mesh.P, minibatches=one.updates.minibatches, epochs=1)
    return rollout, batch, *on_mesh.run(compiled_update, one, state, batch, steps)


def test_a_step_on_eight_devices_is_the_step_on_one():
    one = dataclasses.replace(on_mesh.LEARNER, lora=LORA)
    alone = whole_step(one, None)
    assert fetch(alone[3])["kl"] > 1e-3
    assert fetch(alone[3])["sampler_gap"] < 1e-5
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        got = whole_step(one, mesh)
    on_mesh.assert_same_step(got, alone)
    state = got[2]
    adam = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    for tree in (state.params, adam.mu, adam.nu):
        for target, name, partition in (
            ("q", "a", Spec(None, "fsdp")),
            ("q", "b", Spec(None, None, "tensor")),
            ("out", "a", Spec(None, "tensor")),
            ("out", "b", Spec(None, None, "fsdp")),
            ("down", "a", Spec(None, "tensor")),
        ):
            leaf = tree[target][name]
            assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, partition), leaf.ndim), (target, name)
    down = NamedSharding(mesh, Spec(None, "tensor", "fsdp"))
    assert state.base["layers"]["down"].sharding.is_equivalent_to(down, 3)


CHANGES = ("lora.rank=2", "objective={preset: grpo, kl_coef: 0.1}", "train.steps=4", "data.test_size=2")


def test_a_run_warms_up_all_weights_and_then_trains_adapters_and_resumes_bit_by_bit(tiny_run):
    changes = (*CHANGES, "train.minibatches=2", "checkpoint.every=2")
    built = tiny_run(*changes, out="whole")
    whole = train(built)
    run = tiny_run(*changes, out="cut")
    first = train(run, stop=stop_at(2))
    second = train(must_resume(run))
    chex.assert_trees_all_equal(second.state, whole.state)
    assert rows(run) == rows(built)
    state = whole.state
    assert state.reference is None
    assert state.params.keys() == set(TARGETS)
    assert min(np.abs(x).max() for x in jax.tree.leaves(state.params)) > 1e-5
    # The weights are those that the warm-up left: not the first ones, and the same before and after.
    chex.assert_trees_all_equal(first.state.base, state.base)
    assert (
        np.abs(init(built.learner.model, jax.random.key(built.settings.seed))["embed"] - state.base["embed"]).max()
        > 1e-4
    )
    assert all(row["sampler_gap"] < 1e-5 for row in rows(run))
    with jax.set_mesh(run.mesh):
        params, step = trained_params(run)
    assert step == 4
    chex.assert_trees_all_equal(params, policy_params(run.learner, state))


def test_adapters_are_drawn_from_the_runs_seed(params):
    copies = [jax.tree.map(jnp.copy, params) for _ in range(3)]  # the state takes over what it is given
    states = [on_mesh.run(compiled_state, learner(grpo()), *of) for of in zip(copies, (0, 0, 1), strict=True)]
    chex.assert_trees_all_equal(states[0], states[1])
    chex.assert_trees_all_equal(states[0].base, states[2].base)
    assert np.abs(states[0].params["q"]["a"] - states[2].params["q"]["a"]).max() > 0.1


def test_adapters_learn():
    """Of one batch they learn by heart what the weights alone say nothing about."""
    one = learner(sft(), optimizer=optax.adam(3e-2))
    state = init_state(one, random_params(MODEL), KEY)
    rollout, _ = drawn()
    batch = TokenBatch(prompt=PROMPT, tokens=rollout.tokens, mask=rollout.mask, advantage=jnp.ones((P, G, T)))
    losses = []
    for _ in range(40):
        state, metrics = STEP(one, state, batch, order(1))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    chex.assert_trees_all_equal(state.base, random_params(MODEL))


def test_the_section_becomes_the_learners_adapters(tiny_run):
    run = tiny_run("lora={rank: 4, alpha: 8, targets: [q, v]}")
    assert run.learner.lora == Lora(rank=4, alpha=8.0, targets=("q", "v"))
    assert run.warmup_learner.lora is None
    assert tiny_run("lora={alpha: 8, targets: [q, v]}").learner.lora is None
    assert typing.get_args(Adapted) == tuple(TARGETS)
    plain = to_dict(run.settings)
    assert json.loads(json.dumps(plain)) == plain
    assert to_dict(from_dict(plain)) == plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("lora.rank=0",), "lora.rank: value 0; expected an integer of at least 1, or null"),
        (("lora.alpha=0",), "lora.alpha: value 0; expected a number above 0"),
        (
            ("lora.rank=2", "lora.targets=[q, head]"),
            "lora.targets.1: value 'head'; expected 'q' or 'k' or 'v'",
        ),
        (("lora.rank=2", "lora.targets=[]"), "lora.targets: value []; expected at least one matrix, each of them once"),
        (("lora.targets=[q, v, q]",), "lora.targets: value ['q', 'v', 'q']; expected at least one matrix"),
        (("lora.rnak=2",), "did you mean 'rank'"),
        (
            ("lora.rank=2", "train.reference_every=3"),
            "train.reference_every: value 3; expected null, because with lora.rank the reference is",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny_run, changes, message):
    with pytest.raises(ConfigError) as error:
        tiny_run(*changes)
    assert message in str(error.value)

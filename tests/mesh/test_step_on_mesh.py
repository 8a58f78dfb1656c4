"""A whole step on every kind of mesh is the step on one device: drawn, scored, learned."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Spec

from grpo_jax.core import exact, grpo, sft
from grpo_jax.core.naming import show
from grpo_jax.learn import Learner, OptimizerSettings, UpdateSettings
from grpo_jax.learn.optimizer import make_optimizer
from grpo_jax.learn.step import minibatch_order
from grpo_jax.mesh import AXES, Rules, fetch, make_mesh, sharding
from grpo_jax.run.compiled import (
    compiled_batch,
    compiled_keys,
    compiled_publish,
    compiled_sample,
    compiled_state,
    compiled_update,
)
from grpo_jax.testing.tiny import tiny_config, tiny_prompts
from grpo_jax.types import Grades, TokenBatch
from tests.rollout.small import QUICK, random_params

P, G, T = 32, 8, 6
MODEL = tiny_config(vocab=24, qkv_bias=True, qk_norm=True, tied=False, temperature=0.8, logprob_chunk=4)
LEARNER = Learner(
    model=MODEL,
    objective=grpo(),
    # The default eps would turn the rounding of a gradient near 0 into a whole step.
    optimizer=make_optimizer(OptimizerSettings(learning_rate=1e-2, eps=1e-3), 1e-2),
    updates=UpdateSettings(minibatches=2, micro_prompts=8),
)
# On the host, as a run's data is: placing it is then no program of its own.
PROMPT = fetch(tiny_prompts((5, 1, 3, 6) * (P // 4), vocab=MODEL.vocab))
PARAMS, REFERENCE = (fetch(random_params(MODEL, seed)) for seed in (0, 1))
SHAPES = [(8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 8, 1), (1, 1, 4, 2), (2, 2, 1, 2), (2, 2, 2, 1), (1, 1, 1, 1)]


def rewards(tokens, mask):
    """The share of even tokens, and nothing for a few completions."""
    reward = np.mean(tokens % 2 == 0, axis=-1, where=mask).astype(np.float32)
    valid = np.arange(P * G).reshape(P, G) % 7 != 3
    return Grades(reward=np.where(valid, reward, np.nan), valid=valid)


def run(program, static, *args, **options):
    """Calls a program of a run, compiled as there but for the optimisation of machine code."""
    return program.jitted().lower(static, *args, **options).compile(QUICK)(*args)


def whole_step(learner, mesh):
    """Everything that a step computes, on `mesh` or on a single device without one."""

    def place(x, *axes):
        return x if mesh is None else jax.device_put(x, sharding(mesh, learner.model.rules, *axes))

    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        reference = run(compiled_state, learner, REFERENCE).params
        state = dataclasses.replace(run(compiled_state, learner, PARAMS), reference=reference)
        prompt = place(PROMPT, "prompt")
        rollout = run(
            compiled_sample,
            learner.model,
            run(compiled_publish, learner.model, state.params),
            prompt,
            place(compiled_keys(0, 3, np.arange(P, dtype=np.int32), group=G), "prompt", "sample"),
            max_tokens=T,
            eos_ids=(3, 11),
            check_every=3,
        )
        tokens, mask = fetch((rollout.tokens, rollout.mask))
        grades = place(rewards(tokens, mask), "prompt", "sample")
        batch = run(compiled_batch, learner, state, prompt, rollout, grades)
        order = minibatch_order(0, 3, prompts=P, minibatches=learner.updates.minibatches, epochs=1)
        state, metrics = run(compiled_update, learner, state, batch, order)
        return rollout, batch, state, metrics


@pytest.fixture(scope="module")
def alone():
    return whole_step(LEARNER, None)


def assert_same_step(got, expected):
    (rollout, batch, state, metrics), (rollout_1, batch_1, state_1, metrics_1) = fetch((got, expected))
    for name in ("tokens", "mask", "ended"):
        np.testing.assert_array_equal(getattr(rollout, name), getattr(rollout_1, name), err_msg=name)
    np.testing.assert_allclose(rollout.logp, rollout_1.logp, atol=1e-5)
    np.testing.assert_array_equal(batch.mask, batch_1.mask)
    for name in ("advantage", "old_logp", "sampler_logp", "ref_logp", "ref_hidden"):
        values, values_1 = getattr(batch, name), getattr(batch_1, name)
        assert (values is None) == (values_1 is None), name
        if values is not None:
            np.testing.assert_allclose(values[batch.mask], values_1[batch.mask], atol=1e-5, err_msg=name)
    assert metrics.keys() == metrics_1.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, metrics_1[name], rtol=1e-5, atol=1e-6, err_msg=name)
    leaves, leaves_1 = (jax.tree_util.tree_leaves_with_path(s) for s in (state, state_1))
    for (path, leaf), (_, leaf_1) in zip(leaves, leaves_1, strict=True):
        np.testing.assert_allclose(leaf, leaf_1, rtol=1e-5, atol=1e-6, err_msg=jax.tree_util.keystr(path))


def test_the_step_on_one_device_draws_learns_and_uses_every_term(alone):
    """What the meshes are compared with is no trivial step."""
    rollout, batch, state, metrics = fetch(alone)
    assert 0 < rollout.ended.sum() < P * G
    assert 0 < batch.mask.sum() < rollout.mask.sum() < P * G * T
    assert np.isfinite(batch.advantage).all()
    assert (batch.advantage != 0).mean() > 0.5
    assert metrics["kl"] > 1e-3
    assert metrics["ratio"] != 1
    assert metrics["sampler_gap"] < 1e-5
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, PARAMS)
    assert min(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize("shape", SHAPES, ids=show)
def test_a_whole_step_is_the_same_on_every_mesh(alone, shape):
    mesh = make_mesh(**dict(zip(AXES, shape, strict=True)))
    got = whole_step(LEARNER, mesh)
    assert_same_step(got, alone)
    assert_split(mesh, got)


def assert_split(mesh, step):
    """Parameters, their moments and the reference lie where the rules say; completions are spread, not repeated."""
    rollout, _, state, _ = step
    expected = {
        "embed": (("embed",), Spec("tensor", "fsdp")),
        "down": (("layers", "down"), Spec(None, "tensor", "fsdp")),
        "q": (("layers", "attention", "q"), Spec(None, "fsdp", "tensor")),
        "scale": (("norm", "scale"), Spec()),
    }
    adam = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    for tree in (state.params, adam.mu, adam.nu, state.reference):
        for name, (path, partition) in expected.items():
            leaf = tree
            for key in path:
                leaf = leaf[key]
            assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, partition), leaf.ndim), name
    split = NamedSharding(mesh, Spec(("data", "fsdp"), "group"))
    assert rollout.tokens.sharding.is_equivalent_to(split, 3)
    D, fsdp, tensor = MODEL.hidden, mesh.shape["fsdp"], mesh.shape["tensor"]
    assert {s.data.shape for s in adam.mu["embed"].addressable_shards} == {(MODEL.vocab // tensor, D // fsdp)}


def test_the_exact_kl_is_the_same_on_a_mesh():
    learner = dataclasses.replace(
        LEARNER, objective=dataclasses.replace(grpo(), kl=exact), updates=UpdateSettings(micro_prompts=8)
    )
    expected = whole_step(learner, None)
    got = whole_step(learner, make_mesh(data=2, fsdp=2, tensor=2))
    assert fetch(expected[3])["kl"] > 1e-3
    assert_same_step(got, expected)


def test_a_supervised_batch_of_single_completions_is_the_same_on_a_mesh_that_splits_groups():
    model = dataclasses.replace(MODEL, temperature=1.0)
    learner = dataclasses.replace(LEARNER, model=model, objective=sft(), updates=UpdateSettings())
    rng = np.random.default_rng(0)
    batch = TokenBatch(
        prompt=PROMPT,
        tokens=rng.integers(0, MODEL.vocab, (P, 1, T), dtype=np.int32),
        mask=np.arange(T) < rng.integers(1, T + 1, (P, 1, 1)),
        advantage=np.ones((P, 1, T), np.float32),
    )
    order = np.arange(P, dtype=np.int32)[None]
    expected = fetch(run(compiled_update, learner, run(compiled_state, learner, PARAMS), batch, order))
    mesh = make_mesh(data=2, group=2, fsdp=2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(batch, sharding(mesh, MODEL.rules, "prompt"))
        got = run(compiled_update, learner, run(compiled_state, learner, PARAMS), placed, order)
    assert got[0].params["embed"].sharding.is_equivalent_to(NamedSharding(mesh, Spec("tensor", "fsdp")), 2)
    assert expected[1]["loss"] > 1
    for leaf, leaf_1 in zip(jax.tree.leaves(fetch(got)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, leaf_1, rtol=1e-5, atol=1e-6)


def test_other_rules_split_otherwise_and_change_no_number(alone):
    """Weights whole on every device, and the feed-forward part over both axes that are left."""
    rules = Rules(embed=None, mlp=("fsdp", "tensor"), vocab=None)
    model = dataclasses.replace(MODEL, rules=rules)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    got = whole_step(dataclasses.replace(LEARNER, model=model), mesh)
    assert_same_step(got, alone)
    params = got[2].params
    assert params["embed"].sharding.is_fully_replicated
    expected = NamedSharding(mesh, Spec(None, ("fsdp", "tensor"), None))
    assert params["layers"]["down"].sharding.is_equivalent_to(expected, 3)

"""A step on live tokens is the same on every mesh: cells stay with the prompts of a device, their rows are spread."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Spec

from grpo_jax.core import grpo, ppo
from grpo_jax.core.naming import show
from grpo_jax.learn import Learner, OptimizerSettings, UpdateSettings
from grpo_jax.learn.optimizer import make_optimizer
from grpo_jax.learn.packing import Room, pack
from grpo_jax.learn.step import minibatch_order
from grpo_jax.mesh import AXES, fetch, make_mesh, sharding
from grpo_jax.mesh.mesh import devices_along
from grpo_jax.run.compiled import compiled_batch, compiled_state, compiled_update
from grpo_jax.testing.tiny import tiny_config, tiny_prompts
from grpo_jax.types import Grades, Rollout
from tests.mesh.test_step_on_mesh import run
from tests.rollout.small import random_params

P, G, T = 32, 8, 8
MODEL = tiny_config(vocab=24, qkv_bias=True, tied=False, temperature=0.8, logprob_chunk=4)
LEARNER = Learner(
    model=MODEL,
    objective=grpo(),
    # The default eps would turn the rounding of a gradient near 0 into a whole step.
    optimizer=make_optimizer(OptimizerSettings(learning_rate=1e-2, eps=1e-3), 1e-2),
    updates=UpdateSettings(minibatches=2, micro_prompts=8),
)
CRITIC = dataclasses.replace(
    LEARNER, objective=dataclasses.replace(ppo(), reward_kl_coef=0.1), updates=UpdateSettings(micro_prompts=16)
)
PROMPT = fetch(tiny_prompts((5, 1, 3, 6) * (P // 4), vocab=MODEL.vocab))
PARAMS, REFERENCE = (fetch(random_params(MODEL, seed)) for seed in (0, 1))
SHAPES = [(4, 2, 1, 1), (1, 1, 8, 1), (1, 2, 2, 2)]


def drawn():
    """Completions of which most are short, one in seven has no reward, and all of one prompt are empty."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(0.4, (P, G)), T)
    lengths[5] = 0
    mask = np.arange(T) < lengths[..., None]
    tokens = rng.integers(0, MODEL.vocab, mask.shape, dtype=np.int32)
    logp = np.where(mask, rng.normal(size=mask.shape) * 0.3 - 3, 0).astype(np.float32)
    valid = np.arange(P * G).reshape(P, G) % 7 != 3
    reward = np.where(valid, rng.uniform(size=(P, G)), np.nan).astype(np.float32)
    return Rollout(tokens=tokens, mask=mask, logp=logp, ended=lengths < T), Grades(reward=reward, valid=valid)


ROLLOUT, GRADES = drawn()
LENGTHS = np.where(GRADES.valid, ROLLOUT.mask.sum(-1), 0)


def layouts(learner, parts, row_devices, order):
    """The layouts in which a batch is scored and learnt from on such a mesh."""
    room = Room(
        length=T,
        prompt_length=PROMPT.mask.shape[-1],
        hidden=MODEL.hidden,
        micro_prompts=learner.updates.micro_prompts,
        parts=parts,
        row_devices=row_devices,
    )
    scored, _, _ = pack(LENGTHS, PROMPT.mask.sum(-1), room)
    if len(order) == 1:
        return scored, scored
    return scored, pack(LENGTHS, PROMPT.mask.sum(-1), room, order=order)[0]


def step(learner, mesh, packed):
    """What is scored and learnt, on a mesh or on a single device without one."""
    rules = learner.model.rules
    order = minibatch_order(0, 3, prompts=P, minibatches=learner.updates.minibatches, epochs=1)
    scored = learnt = None
    if packed:
        parts, row_devices = (
            1 if mesh is None else devices_along(mesh, rules.axes(name)) for name in ("prompt", "sample")
        )
        scored, learnt = layouts(learner, parts, row_devices, order)

    def place(x, *axes):
        return x if mesh is None else jax.device_put(x, sharding(mesh, rules, *axes))

    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        reference = run(compiled_state, learner, REFERENCE).params
        state = dataclasses.replace(run(compiled_state, learner, PARAMS), reference=reference)
        data = place(PROMPT, "prompt"), *(place(x, "prompt", "sample") for x in (ROLLOUT, GRADES))
        batch = run(compiled_batch, learner, state, *data, scored)
        state, metrics = run(compiled_update, learner, state, batch, order, learnt)
        return batch, state, metrics


@pytest.fixture(scope="module")
def alone():
    """The padded step on one device."""
    return fetch(step(LEARNER, None, packed=False))


def assert_same(got, expected):
    (batch, *rest), (batch_1, *rest_1) = fetch(got), expected
    np.testing.assert_array_equal(batch.mask, batch_1.mask)
    for name in ("advantage", "old_logp", "sampler_logp", "ref_logp", "value", "returns"):
        values, values_1 = getattr(batch, name), getattr(batch_1, name)
        assert (values is None) == (values_1 is None), name
        if values is not None:
            np.testing.assert_allclose(values[batch.mask], values_1[batch.mask], rtol=1e-5, atol=1e-5, err_msg=name)
    leaves, leaves_1 = (jax.tree_util.tree_leaves_with_path(tree) for tree in (rest, rest_1))
    for (path, leaf), (path_1, leaf_1) in zip(leaves, leaves_1, strict=True):
        assert path == path_1
        np.testing.assert_allclose(leaf, leaf_1, rtol=1e-5, atol=1e-6, err_msg=jax.tree_util.keystr(path))


def test_the_step_on_one_device_is_no_trivial_one(alone):
    """What the meshes are compared with learns, from some of the tokens; and packing it leaves something out."""
    batch, state, metrics = alone
    assert 0 < batch.mask.sum() < ROLLOUT.mask.sum() < P * G * T / 2
    assert metrics["kl"] > 1e-3
    assert metrics["ratio"] != 1
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, PARAMS)
    assert min(jax.tree.leaves(moved)) > 1e-3
    order = minibatch_order(0, 3, prompts=P, minibatches=2, epochs=1)
    for parts, row_devices in ((1, 1), (4, 2), (8, 1), (2, 2)):
        for layout in layouts(LEARNER, parts, row_devices, order):
            size, cells = layout.size, layout.cells
            assert cells.prompt.shape[-2] % parts == 0
            assert size.rows % row_devices == 0
            assert (cells.length > 0).sum(-1).max() > size.rows
            computed = np.sum(layout.count) * cells.prompt.shape[-2] * size.rows * size.length
            assert computed < P * G * T


def test_a_step_on_live_tokens_of_one_device_is_the_padded_one(alone):
    assert_same(step(LEARNER, None, packed=True), alone)


@pytest.mark.parametrize("shape", SHAPES, ids=show)
def test_a_step_on_live_tokens_is_the_padded_one_on_every_mesh(alone, shape):
    mesh = make_mesh(**dict(zip(AXES, shape, strict=True)))
    got = step(LEARNER, mesh, packed=True)
    assert_same(got, alone)
    split = NamedSharding(mesh, Spec("tensor", "fsdp"))
    assert got[1].params["embed"].sharding.is_equivalent_to(split, 2)


def test_the_critic_learns_the_same_from_live_tokens_on_a_mesh():
    expected = fetch(step(CRITIC, None, packed=False))
    assert expected[2]["critic_grad_norm"] > 1e-3
    assert_same(step(CRITIC, make_mesh(data=4, group=2), packed=True), expected)

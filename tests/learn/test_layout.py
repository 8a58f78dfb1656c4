"""Scores and updates of live tokens alone are those of the padded batch.

In double precision the two differ by the order of their sums. Of the package, that takes no more than its own
`jnp.float32` to mean double too. Plain descent shows the gradient itself, which Adam would scale.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grpo_jax.learn.batch
import grpo_jax.learn.critic
import grpo_jax.learn.losses
import grpo_jax.models.scoring
from grpo_jax.core import Objective
from grpo_jax.core.advantage import ProcessNormalised
from grpo_jax.core.aggregate import ConstantLength, EveryRow
from grpo_jax.core.kl import exact
from grpo_jax.learn import packing, score, token_batch
from grpo_jax.learn.packing import Room, Shape, pack
from grpo_jax.learn.state import init_state
from grpo_jax.learn.step import gradient, update
from grpo_jax.models import Lora
from grpo_jax.testing.tiny import tiny_config
from grpo_jax.types import Grades, PromptBatch, Rollout, TokenBatch
from tests.learn.small import learner
from tests.learn.test_every_objective import OBJECTIVES
from tests.rollout.small import quick_jit, random_params

P, G, T, S, V = 4, 3, 8, 6, 23
ORDER = np.array([[0, 2], [3, 1]], np.int32)
LENGTHS = np.array([[2, 1, 1], [4, 6, 2], [2, 5, 3], [4, 3, 8]])
PROMPT_LENGTHS = np.array([5, 1, 3, 6])
SHAPE = Shape(rows=2, length=T, prompts=3, prompt_length=S, lanes=1)
"""Rows of several completions, cells of several prompts, and more than one micro-batch."""

DOUBLE = tiny_config(dtype="float64", logprob_chunk=3)
MODEL = dataclasses.replace(DOUBLE, dtype="float32")
SGD = optax.sgd(0.1)
CLOSE = {"rtol": 1e-12, "atol": 1e-13}


def step(one, state, prompt, rollout, grades, order, scored, learnt):
    batch = token_batch(one, state, prompt, rollout, grades, scored)
    return batch, *update(one, state, batch, order, learnt)


STEP, SCORE, GRADIENT = (quick_jit(f, static_argnums=0) for f in (step, score, gradient))
ENTROPY = quick_jit(functools.partial(score, entropy=True), static_argnums=0)


@pytest.fixture(scope="module", autouse=True)
def programs_are_not_stored():
    """No other test compiles the programs of this module, and to write them down takes as long as to compile some."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    yield
    jax.config.update(name, before)


@pytest.fixture
def shallow(monkeypatch):
    """Puts a model without layers in the decoder's place: quick to compile, and it reads all that packing says."""

    def hidden_states(config, params, rows):
        embed = params["embed"]
        weight = rows.prompt.mask[..., None] / rows.prompt.mask.sum(-1)[..., None, None]
        prompts = (embed[rows.prompt.tokens] * weight).sum(-2)
        slot = jnp.zeros_like(rows.tokens) if rows.packing is None else rows.packing.slot
        prompt = jax.vmap(lambda x, at: x[at])(prompts, slot)
        return jnp.tanh(embed[rows.inputs] + prompt * (rows.last + rows.index)[..., None] / 4)

    for module in (grpo_jax.learn.batch, grpo_jax.learn.critic, grpo_jax.learn.losses, grpo_jax.models.scoring):
        monkeypatch.setattr(module, "hidden_states", hidden_states)


def prompts(lengths=PROMPT_LENGTHS, padding=0):
    """Prompts of these lengths, in S places."""
    tokens, mask = np.random.default_rng(1).integers(0, V, (len(lengths), S)), np.arange(S) < np.array(lengths)[:, None]
    return PromptBatch(tokens=np.where(mask, tokens, padding).astype(np.int32), mask=mask)


def drawn(model, params, lengths=LENGTHS, prompt=None, *, invalid=((1, 0),)):
    """Completions of these lengths, said to be drawn by nearly this policy, with rewards of every kind."""
    rng, prompt = np.random.default_rng(2), prompts() if prompt is None else prompt
    mask = np.arange(T) < lengths[..., None]
    tokens = rng.integers(0, V, mask.shape).astype(np.int32)
    logp = np.asarray(SCORE(model, params, prompt, tokens).logp) + rng.normal(size=mask.shape) * 0.2
    valid = np.ones(lengths.shape, bool)
    for index in invalid:
        valid[index] = False
    term, weight = rng.uniform(size=(*lengths.shape, 2)), np.array([1.0, 0.5])
    rollout = Rollout(
        tokens=tokens, mask=mask, logp=np.where(mask, logp, 0).astype(model.dtype), ended=lengths < lengths.max()
    )
    real = {
        "reward": np.where(valid, term @ weight, np.nan),
        "term_reward": term,
        "term_weight": weight,
        "greedy_reward": np.full(len(lengths), 0.5),
        "step_reward": rng.uniform(size=(*lengths.shape, 2)),
    }
    return (
        prompt,
        rollout,
        Grades(
            **{name: x.astype(model.dtype) for name, x in real.items()},
            valid=valid,
            step_end=np.stack([lengths // 2, lengths - 1], -1).astype(np.int32),
            step_valid=np.broadcast_to(lengths[..., None] > 1, (*lengths.shape, 2)),
        ),
    )


def state_of(one, params):
    """The first state, but a reference that is another policy and a critic that says something."""
    state, rng = init_state(one, params, jax.random.key(0)), np.random.default_rng(3)

    def other(x):
        return x + (rng.normal(size=x.shape) * 0.05).astype(x.dtype)

    if one.lora is not None:
        # The second factor of fresh adapters is 0.
        state = dataclasses.replace(state, params=jax.tree.map(lambda x: other(x) * 4, state.params))
    if state.reference is not None:
        state = dataclasses.replace(state, reference=jax.tree.map(other, state.reference))
    if state.critic is not None:
        critic = dataclasses.replace(state.critic, params=jax.tree.map(lambda x: other(x) * 2, state.critic.params))
        state = dataclasses.replace(state, critic=critic)
    return state


def live_lengths(rollout, grades):
    return np.where(grades.valid & np.isfinite(grades.reward), rollout.mask.sum(-1), 0)


def placed(lengths, prompt, shape=SHAPE, *, order=None, **room):
    """The layout in cells of this shape, whatever it costs."""
    room = Room(length=T, prompt_length=prompt.mask.shape[-1], hidden=16, **room)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "KNOWN", math.inf)
        layout, got, _ = pack(lengths, prompt.mask.sum(-1), room, order=order, known=[shape])
    assert got == shape
    return layout


def assert_same(got, expected, **tolerance):
    """The same trees; of what a batch says of tokens, only the scored ones count."""
    tolerance = tolerance or CLOSE
    (batch, *rest), (batch_1, *rest_1) = (jax.tree.map(np.asarray, x) for x in (got, expected))
    np.testing.assert_array_equal(batch.mask, batch_1.mask)
    for field in dataclasses.fields(batch):
        values, values_1 = getattr(batch, field.name), getattr(batch_1, field.name)
        assert (values is None) == (values_1 is None), field.name
        if values is not None and field.name != "prompt":
            values, values_1 = values[batch.mask], values_1[batch.mask]
            np.testing.assert_allclose(values, values_1, **tolerance, err_msg=field.name)
    leaves, leaves_1 = (jax.tree_util.tree_leaves_with_path(x) for x in (rest, rest_1))
    for (path, leaf), (path_1, leaf_1) in zip(leaves, leaves_1, strict=True):
        assert path == path_1
        np.testing.assert_allclose(leaf, leaf_1, **tolerance, err_msg=jax.tree_util.keystr(path))


def both(one, params, *data, order=None, shape=SHAPE, **room):
    """A step on live tokens, and the same on the padded batch."""
    state, (prompt, rollout, grades) = state_of(one, params), data
    lengths = live_lengths(rollout, grades)
    scored = placed(lengths, prompt, shape, **room)
    learnt = scored if order is None else placed(lengths, prompt, shape, order=order, **room)
    got = STEP(one, state, *data, order, scored, learnt)
    expected = STEP(one, state, *data, order, None, None)
    return got, expected


def test_the_layout_of_these_tests_has_all_that_can_go_wrong():
    """Rows of several completions, cells of several prompts, a prompt in two cells, minibatches of several cells."""
    lengths = np.where(np.arange(P * G).reshape(P, G) == G, 0, LENGTHS)
    cells = placed(lengths, prompts()).cells
    used = cells.length > 0
    assert used.any((-1, -2)).sum() > 2
    assert used.sum(-1).max() > SHAPE.rows
    assert cells.slot[used].max() > 0
    cell, completion = np.nonzero(used)[0], cells.completion[used]
    assert max(len(set(cell[completion // G == prompt])) for prompt in range(P)) > 1
    assert cells.length.sum() < used.any((-1, -2)).sum() * SHAPE.rows * T
    assert placed(lengths, prompts(), order=ORDER).count.max() > 1
    assert set(cells.length[used].tolist()) > {1, 2, T}


EVERY = {
    **OBJECTIVES,
    "process": Objective(advantage=ProcessNormalised(), aggregate=ConstantLength(length=8.0)),
    "every_row": Objective(aggregate=EveryRow(), kl_coef=0.1),
    "exact": Objective(kl=exact, kl_coef=0.1, entropy_coef=0.01),
    "exact_reward": Objective(kl=exact, reward_kl_coef=0.1),
}
SHALLOW = dataclasses.replace(DOUBLE, layers=1, tied=False)


@pytest.mark.parametrize("name", EVERY)
def test_every_objective_on_live_tokens_is_the_objective_on_the_padded_batch(double, shallow, name):
    """What it scores, all its metrics, and the weights that descent leaves.

    In two minibatches, so that ratios differ from 1, but where a reference or a critic makes the program large.
    """
    objective = EVERY[name]
    cut = not (objective.needs_reference or objective.needs_critic)
    options = {"mask_truncated": True, "overlong_buffer": 4} if name in ("every_row", "dapo") else {}
    one = learner(objective, model=SHALLOW, optimizer=SGD, minibatches=2 if cut else 1, **options)
    params = random_params(SHALLOW)
    got, expected = both(one, params, *drawn(SHALLOW, params), order=ORDER if cut else None)
    assert_same(got, expected)
    assert expected[2]["grad_norm"] > 1e-4


WINDOW = {"local": (True, False), "window": 3, "local_rope_theta": 100.0, "attention_cap": 2.0, "final_cap": 5.0}
"""Shorter than some completions, and from the first tokens of others it reaches into the prompt."""
DEEP = {
    "grpo": ({"minibatches": 2}, {"qk_norm": True, "tied": False, **WINDOW}),
    "ppo": ({}, {"remat": "layer"}),
    "dapo": ({"lora": Lora(rank=2, alpha=3.0)}, {"qkv_bias": True, "remat": "layer"}),
    "exact": ({}, {"final_cap": 5.0}),
    "gspo": ({}, {"local": (True, True), "window": 6, "attention_cap": 2.0}),
    "whitened": ({}, {"zero_centred": True, "post_norms": True}),
}


@pytest.mark.parametrize("name", DEEP)
def test_the_decoder_on_live_tokens_is_the_decoder_on_the_padded_batch(double, name):
    """With windows, soft caps, adapters and rematerialised layers, under every sort of objective."""
    updates, model = DEEP[name]
    model, cut = dataclasses.replace(DOUBLE, **model), "minibatches" in updates
    one = learner(EVERY[name], model=model, optimizer=SGD, **updates)
    params = random_params(model)
    got, expected = both(one, params, *drawn(model, params), order=ORDER if cut else None)
    assert_same(got, expected)
    assert expected[2]["grad_norm"] > 1e-3


SINGLE = np.ones((P, G), int)
PATTERNS = {
    "ones": (SINGLE, ()),
    "equal": (5 * SINGLE, ()),
    "full": (T * SINGLE, ()),
    "one_full": (np.where(np.arange(P * G).reshape(P, G) == 4, T, SINGLE), ()),
    "empty_groups": (LENGTHS * np.array([[0], [1], [0], [1]]), ()),
    "invalid_groups": (LENGTHS, [(0, g) for g in range(G)] + [(3, g) for g in range(G)]),
    "one_left": (LENGTHS, [(p, g) for p in range(P) for g in range(G) if (p, g) != (2, 1)]),
    "empty": (0 * SINGLE, ()),
    "invalid": (LENGTHS, [(p, g) for p in range(P) for g in range(G)]),
}
CUT = Shape(rows=3, length=T, prompts=2, prompt_length=3, lanes=2)


@pytest.mark.parametrize("name", PATTERNS)
def test_any_lengths_give_the_update_of_the_padded_batch(name):
    """In single precision, and with prompts that the layout cuts to a half of what they are padded to."""
    model, (lengths, invalid) = MODEL, PATTERNS[name]
    one = learner(Objective(aggregate=EveryRow(), kl_coef=0.1), model=model, optimizer=SGD)
    params, prompt = random_params(model), prompts((2, 1, 3, 2))
    data = drawn(model, params, lengths, prompt, invalid=invalid)
    got, expected = both(one, params, *data, shape=CUT)
    assert_same(got, expected, rtol=2e-5, atol=1e-6)
    dead = "grad_norm" if name in ("empty", "invalid") else ""
    assert (expected[2]["grad_norm"] > 1e-3) == (not dead)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_of_a_batch_stay_apart_and_change_nothing(double, shallow, parts):
    """Indices of completions and of prompts count from the first of their part."""
    one = learner(EVERY["every_row"], model=SHALLOW, optimizer=SGD)
    params, data = random_params(SHALLOW), drawn(SHALLOW, random_params(SHALLOW))
    got, expected = both(one, params, *data, shape=SHAPE._replace(lanes=4 // parts), parts=parts)
    assert_same(got, expected)


def read_by_all_terms():
    """A learner whose objective reads everything that a batch says of tokens, its state, and what is drawn."""
    objective = dataclasses.replace(EVERY["ppo"], kl_coef=0.1, reward_kl_coef=0.0, entropy_coef=0.01)
    objective = dataclasses.replace(objective, correction=EVERY["truncated"].correction)
    one, params = learner(objective, model=SHALLOW, optimizer=SGD), random_params(SHALLOW)
    prompt, rollout, grades = drawn(SHALLOW, params)
    return one, state_of(one, params), prompt, rollout.tokens, live_lengths(rollout, grades)


def batch_of(lengths, prompt, tokens, *, nothing=0.0, padding=0):
    """A batch with random numbers on the tokens that are scored, and `nothing` on the others."""
    rng, mask = np.random.default_rng(4), np.arange(T) < lengths[..., None]
    names = ("advantage", "old_logp", "sampler_logp", "ref_logp", "value", "returns")
    real = {name: rng.normal(size=mask.shape) - (3 if name.endswith("logp") else 0) for name in names}
    return TokenBatch(
        prompt=prompt,
        tokens=np.where(mask, tokens, padding).astype(np.int32),
        mask=mask,
        **{name: np.where(mask, x, nothing) for name, x in real.items()},
    )


def test_no_layout_reads_what_stands_in_padding(double, shallow):
    """NaN wherever nothing is scored, tokens of every sort behind completions and prompts: the same bits."""
    one, state, prompt, tokens, lengths = read_by_all_terms()
    layout = placed(lengths, prompt)
    clean = GRADIENT(one, state, batch_of(lengths, prompt, tokens), None, layout)
    expected = GRADIENT(one, state, batch_of(lengths, prompt, tokens))
    jax.tree.map(functools.partial(np.testing.assert_allclose, **CLOSE), clean, expected)
    assert expected[1]["sampler_gap"].total > 0
    assert expected[1]["value_loss"].weight == lengths.sum()
    for padding in (np.random.default_rng(5).integers(0, V, tokens.shape), V + 5, -V - 5):
        dirty = batch_of(lengths, prompts(padding=7), tokens, nothing=np.nan, padding=padding)
        jax.tree.map(np.testing.assert_array_equal, GRADIENT(one, state, dirty, None, layout), clean)


def test_only_tokens_that_a_layout_computes_are_learnt_from(double, shallow):
    """Whatever the batch scores: of what was never computed, nothing is known."""
    one, state, prompt, tokens, lengths = read_by_all_terms()
    fewer = np.maximum(lengths - np.array([1, 0, 2]), 0)
    assert (fewer.sum(-1) < lengths.sum(-1)).all()
    got = GRADIENT(one, state, batch_of(lengths, prompt, tokens), None, placed(fewer, prompt))
    expected = GRADIENT(one, state, batch_of(fewer, prompt, tokens))
    jax.tree.map(functools.partial(np.testing.assert_allclose, **CLOSE), got, expected)


SHAPES = (
    SHAPE,
    CUT._replace(prompt_length=S),
    Shape(rows=1, length=T, prompts=1, prompt_length=S, lanes=4),
    Shape(rows=2, length=T, prompts=1, prompt_length=S, lanes=2, plain=True),
)
WINDOWED = dataclasses.replace(DOUBLE, **WINDOW)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, T), min_size=P * G, max_size=P * G),
    of_prompts=st.lists(st.integers(1, S), min_size=P, max_size=P),
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 9),
    padding=st.integers(-2 * V, 2 * V),
)
def test_scores_of_any_lengths_are_those_of_the_padded_batch(lengths, of_prompts, shape, seed, padding):
    """On live tokens; the others, of which no model said anything, have 0, whatever they and padded prompts hold."""
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        patch.setattr(jnp, "float32", jnp.float64)
        lengths, prompt = np.array(lengths).reshape(P, G), prompts(of_prompts)
        live = np.arange(T) < lengths[..., None]
        tokens = np.random.default_rng(seed).integers(0, V, live.shape).astype(np.int32)
        params = random_params(WINDOWED)
        layout = placed(lengths, prompt, shape)
        got = ENTROPY(WINDOWED, params, prompt, tokens, layout=layout)
        expected = ENTROPY(WINDOWED, params, prompt, tokens)
        for name in ("logp", "entropy"):
            values = np.where(live, getattr(expected, name), 0)
            np.testing.assert_allclose(getattr(got, name), values, **CLOSE, err_msg=name)
            assert not np.asarray(getattr(got, name))[~live].any()
        tokens = np.where(live, tokens, padding).astype(np.int32)
        again = ENTROPY(WINDOWED, params, prompts(of_prompts, padding), tokens, layout=layout)
        jax.tree.map(np.testing.assert_array_equal, again, got)


def test_as_many_programs_are_compiled_as_there_are_shapes(shallow):
    """20 batches, the shapes so far known to each: the number of micro-batches is no part of a program."""
    traces = []

    def counted(*arguments):
        traces.append(1)
        return step(*arguments)

    program, rng, known, counts = quick_jit(counted, static_argnums=0), np.random.default_rng(5), [], set()
    model = dataclasses.replace(MODEL, layers=1)
    one, params = learner(EVERY["every_row"], model=model, optimizer=SGD), random_params(model)
    state = state_of(one, params)
    for _ in range(20):
        lengths = np.minimum(rng.geometric(1 / 3, (P, G)), T)
        prompt, rollout, grades = drawn(model, params, lengths)
        lengths, room = live_lengths(rollout, grades), Room(length=T, prompt_length=S, hidden=16, micro_prompts=2)
        layout, shape, _ = pack(lengths, prompt.mask.sum(-1), room, known=known)
        known += [shape] if shape not in known else []
        counts.add((shape, int(layout.count)))
        got = program(one, state, prompt, rollout, grades, None, layout, layout)
        assert len(traces) == program._cache_size() == len(known)
        expected = STEP(one, state, prompt, rollout, grades, None, None, None)
        assert_same(got, expected, rtol=2e-5, atol=1e-6)
    assert 1 < len(known) <= 8
    assert len(counts) > len(known)

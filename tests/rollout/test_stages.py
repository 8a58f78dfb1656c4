"""Drawing in stages against the plain loop: the same completions, whatever comes and goes."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.mesh import jit, make_mesh
from grpo_jax.rollout import Sampler, Stages, decoding, publish, sample, sample_keys, stages
from grpo_jax.testing.tiny import tiny_config, tiny_prompts
from tests.rollout.small import quick_jit, random_params

P, G, T = 8, 4, 24
EOS = (3, 11, 17)
FAMILIES = {
    "llama": tiny_config(),
    "qwen3": tiny_config(qkv_bias=True, qk_norm=True),
    "windows": tiny_config(local=(True, False), window=6, attention_cap=5.0, final_cap=3.0),
    "local_rope": tiny_config(local=(True, True), window=5, local_rope_theta=100.0),
}


def prompts(count=P):
    lengths = (5, 1, 3, 6, 2, 6, 4, 1)[:count]
    return jax.tree.map(np.asarray, tiny_prompts(lengths))


STATIC = {
    "static_argnums": 0,
    "static_argnames": ("max_tokens", "eos_ids", "sampler", "check_every", "blocks"),
}
advance_quickly = quick_jit(decoding.advance, **STATIC, donate_argnums=2)


@pytest.fixture(autouse=True)
def short_stages(monkeypatch):
    """Stages that end and grow within the few tokens of a test, in programs that compile fast."""
    for name, value in (("FEWEST", 2), ("SHORTEST", 6), ("LEAST", 0), ("_advance", advance_quickly)):
        monkeypatch.setattr(stages, name, value)


plain = quick_jit(sample, static_argnums=0, static_argnames=("max_tokens", "eos_ids", "sampler", "check_every"))


@functools.cache
def published(config):
    return quick_jit(publish, static_argnums=0)(config, random_params(config))


def both(config, *, rows=None, sampler=None, eos_ids=EOS, max_tokens=T, prompt=None, group=G, check_every=2):
    """Completions in stages, and those of the plain loop."""
    prompt = prompts() if prompt is None else prompt
    keys = sample_keys(0, 5, jnp.arange(len(prompt.tokens)), group)
    how = {"max_tokens": max_tokens, "eos_ids": eos_ids, "sampler": sampler, "check_every": check_every}
    staged = Stages(config, published(config), prompt, keys, rows=rows, **how)
    ended = list(staged)
    return staged, ended, plain(config, published(config), prompt, keys, **how)


def assert_same(staged, expected):
    """Tokens, mask and ends exactly; log-probs up to the rounding of products over other numbers of rows."""
    got = staged.rollout
    np.testing.assert_array_equal(got.mask, expected.mask)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    np.testing.assert_array_equal(got.ended, expected.ended)
    np.testing.assert_allclose(got.logp, expected.logp, atol=3e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("rows", [None, 8])
def test_completions_are_those_of_the_plain_loop(name, rows):
    """Lengths from one to the limit; the window is crossed by stages, and rows begin at cursors of their own."""
    staged, ended, expected = both(FAMILIES[name], rows=rows)
    assert_same(staged, expected)
    lengths = np.asarray(expected.mask).sum(-1)
    assert lengths.min() < 4
    assert lengths.max() > 12
    assert len(ended) > 3, "there were stages"
    assert sorted(itertools.chain(*ended)) == list(np.ndindex(P, G)), "each has ended once"


def test_a_stage_is_bit_equal_where_every_matrix_has_the_same_shape(monkeypatch):
    """Compiled as a run compiles them, a single stage and the plain loop round alike."""
    monkeypatch.setattr(stages, "_advance", jit(decoding.advance, **STATIC, donate_argnums=2))
    config, keys = FAMILIES["llama"], sample_keys(0, 5, jnp.arange(P), G)
    how = {"max_tokens": 6, "eos_ids": EOS, "sampler": None, "check_every": 2}
    loop = jit(sample, static_argnums=0, static_argnames=tuple(how))
    got = Stages(config, published(config), prompts(), keys, **how).finish()
    expected = loop(config, published(config), prompts(), keys, **how)
    np.testing.assert_array_equal(got.logp, expected.logp)
    np.testing.assert_array_equal(got.tokens, expected.tokens)


def test_greedy_draws_and_limits_that_no_stage_fits():
    staged, _, expected = both(FAMILIES["qwen3"], sampler=Sampler(temperature=0.0), max_tokens=23, check_every=4)
    assert_same(staged, expected)


def test_without_an_end_the_room_grows_and_nothing_else_changes():
    staged, ended, expected = both(FAMILIES["llama"], eos_ids=())
    assert_same(staged, expected)
    assert len(ended) == 1
    assert not staged.rollout.ended.any()
    assert staged.occupancy == 1.0


def test_waiting_prompts_take_the_places_of_rows_that_have_ended(monkeypatch):
    """No stage has more rows than there is room for, and the later ones have more live rows than without waiting."""
    sizes = []
    plain_run = Stages._run

    def run(self, state, cursor):
        sizes.append(state.done.size)
        plain_run(self, state, cursor)

    monkeypatch.setattr(Stages, "_run", run)
    staged, _, expected = both(FAMILIES["llama"], rows=12)
    assert_same(staged, expected)
    assert max(sizes) == 12
    whole, _, _ = both(FAMILIES["llama"])
    assert staged.occupancy > whole.occupancy


def test_a_completion_is_on_its_way_out_before_the_last_one_is_drawn():
    """What is handed out is complete, while the others still lack their ends."""
    keys = sample_keys(0, 5, jnp.arange(P), G)
    config = FAMILIES["llama"]
    staged = Stages(config, published(config), prompts(), keys, max_tokens=T, eos_ids=EOS, check_every=2)
    first = next(iter(staged))
    assert 0 < len(first) < P * G
    got = staged.rollout
    for at in first:
        assert got.mask[at].any()
        assert got.ended[at] or got.mask[at].all()
    rest = np.ones((P, G), bool)
    rest[tuple(zip(*first, strict=True))] = False
    assert not got.mask[rest].any()
    np.testing.assert_array_equal(staged.finish().mask.any(-1), True)


def test_programs_are_few(monkeypatch):
    """Twelve rollouts of other lengths: at most two programs for every halving of the rows."""
    seen = set()
    plain_run = Stages._run

    def run(self, state, cursor):
        seen.add((state.done.shape, state.tokens.shape))
        plain_run(self, state, cursor)

    monkeypatch.setattr(Stages, "_run", run)
    config = FAMILIES["llama"]
    for step in range(12):
        keys = sample_keys(0, step, jnp.arange(P), G)
        Stages(config, published(config), prompts(), keys, max_tokens=T, eos_ids=EOS, check_every=2).finish()
    halvings = math.log2(P * G / 2)
    assert len(seen) <= 2 * (halvings + 1), seen


@pytest.mark.parametrize("axes", [{"data": 4, "group": 2}, {"fsdp": 8}])
@pytest.mark.parametrize("rows", [None, 32])
def test_on_a_mesh_every_device_has_as_many_rows(axes, rows):
    config = FAMILIES["windows"]
    many = jax.tree.map(lambda x: np.concatenate([x, x]), prompts())
    keys = sample_keys(0, 5, jnp.arange(len(many.tokens)), G)
    how = {"max_tokens": T, "eos_ids": EOS, "sampler": None, "check_every": 2}
    with jax.set_mesh(make_mesh(**axes)):
        staged = Stages(config, published(config), many, keys, rows=rows, **how)
        for _ in staged:
            parts = {shard.data.shape for shard in staged._state.done.addressable_shards}
            assert len(parts) == 1
            assert 8 * math.prod(*parts) == staged._state.done.size
    assert_same(staged, plain(config, published(config), many, keys, **how))

"""The decoding loop against a float64 one that knows neither caches nor batches, and its laws."""

import dataclasses
import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core import token_logprobs
from grpo_jax.mesh import jit
from grpo_jax.models import head, hidden_states, token_scores, unpacked
from grpo_jax.rollout import Sampler, publish, sample, sample_keys
from grpo_jax.testing.decoder import log_softmax, plain_logits
from grpo_jax.testing.tiny import tiny_config, tiny_prompts
from tests.rollout.small import quick_jit, random_params

CONFIG = tiny_config(qkv_bias=True, qk_norm=True)
PARAMS = random_params(CONFIG)
PROMPT = tiny_prompts()
P, G, T = 4, 3, 9
KEYS = sample_keys(0, 5, jnp.arange(P), G)
STATIC = {"static_argnums": 0, "static_argnames": ("max_tokens", "eos_ids", "sampler", "check_every")}

generated = quick_jit(sample, **STATIC)
published = quick_jit(publish, static_argnums=0)(CONFIG, PARAMS)
sampled_at = quick_jit(jax.vmap(lambda key, t: jax.random.uniform(jax.random.fold_in(key, t)), (None, 0)))


def rollout(prompt=PROMPT, keys=KEYS, *, max_tokens=T, eos_ids=(), sampler=Sampler(temperature=0.7), check_every=8):  # noqa: B008
    return generated(
        CONFIG,
        published,
        prompt,
        keys,
        max_tokens=max_tokens,
        eos_ids=eos_ids,
        sampler=sampler,
        check_every=check_every,
    )


@functools.cache
def plain_step(text, temperature):
    """log-probs after a text, in float64."""
    return log_softmax(plain_logits(CONFIG, PARAMS, text)[-1] / temperature)


def plain_completion(text, key, *, eos_ids, temperature, max_tokens=T):
    """One completion, token by token: the inverse of the cumulative distribution at the token's own uniform."""
    tokens, logps = [], []
    for uniform in np.asarray(sampled_at(key, jnp.arange(max_tokens))):
        logp = plain_step((*text, *tokens), temperature)
        cumulative = np.cumsum(np.exp(logp))
        # float32 moves a step of the distribution by less than this; no uniform of these tests lies so near to one.
        assert np.abs(cumulative - uniform).min() > 2e-6
        tokens.append(int(np.searchsorted(cumulative, uniform, side="right")))
        logps.append(logp[tokens[-1]])
        if tokens[-1] in eos_ids:
            break
    return tokens, logps


def assert_plain(got, prompt=PROMPT, keys=KEYS, *, eos_ids=(), temperature=0.7):
    """Every completion is the plain one; what follows its end is 0, 0 and False."""
    for p, g in np.ndindex(*keys.shape):
        text = tuple(np.asarray(prompt.tokens[p])[np.asarray(prompt.mask[p])].tolist())
        tokens, logps = plain_completion(text, keys[p, g], eos_ids=eos_ids, temperature=temperature)
        n, rest = len(tokens), T - len(tokens)
        assert got.tokens[p, g].tolist() == tokens + [0] * rest
        assert got.mask[p, g].tolist() == [True] * n + [False] * rest
        assert bool(got.ended[p, g]) == (tokens[-1] in eos_ids)
        np.testing.assert_allclose(got.logp[p, g, :n], logps, atol=1e-5)
        np.testing.assert_array_equal(got.logp[p, g, n:], 0.0)


@functools.cache
def open_ended():
    """Completions without any end-of-sequence token."""
    return rollout()


def ends():
    """Two ids that end these completions in every way: at the first token, later, at the last one, and not at all."""
    drawn = np.asarray(open_ended().tokens)
    return int(drawn[0, 0, 0]), int(drawn[3, 2, 5])


def lengths(got):
    return np.asarray(got.mask.sum(-1))


def test_without_an_end_all_tokens_are_drawn_as_the_plain_loop_draws_them():
    got = open_ended()
    assert got.mask.all()
    assert not got.ended.any()
    assert_plain(got)


def test_a_completion_ends_with_the_first_of_several_ids():
    got = rollout(eos_ids=ends())
    assert_plain(got, eos_ids=ends())
    ended, length = np.asarray(got.ended), lengths(got)
    assert (length[ended] == 1).any(), "one ends with its first token"
    assert ((length[ended] > 1) & (length[ended] < T)).any(), "one ends in between"
    assert (~ended).any(), "one is cut by the limit"
    assert (length[~ended] == T).all()
    last = np.take_along_axis(np.asarray(got.tokens), length[..., None] - 1, -1)[..., 0]
    assert set(last[ended]) == set(ends())
    assert not set(last[~ended]) & set(ends())


def test_an_end_at_the_very_last_position_counts_as_one():
    eos = int(open_ended().tokens[0, 1, -1])
    got = rollout(eos_ids=(eos,))
    at_the_end = np.asarray(got.ended) & (lengths(got) == T) & np.asarray(got.tokens[..., -1] == eos)
    assert at_the_end[0, 1]
    assert_plain(got, eos_ids=(eos,))


def test_the_filler_after_an_end_is_no_end_itself():
    """Token 0 fills what follows an end. As an id that ends completions it must not be seen there, nor be lost."""
    drawn = np.asarray(open_ended().tokens)
    assert (drawn == 0).any(), "some completion draws token 0"
    ids = (0, ends()[0])
    got = rollout(eos_ids=ids)
    assert_plain(got, eos_ids=ids)
    assert (~np.asarray(got.ended)).any()


@pytest.mark.parametrize("check_every", [3, 9, 8, 20])
def test_when_the_end_is_tested_does_not_change_the_rollout(check_every):
    """Nor its length: where the interval does not divide it, the cache is longer, and sums round differently."""
    expected, got = (rollout(eos_ids=ends(), check_every=k) for k in (1, check_every))
    assert got.tokens.shape == (P, G, T)
    if T % check_every == 0:
        chex.assert_trees_all_equal(got, expected)
    chex.assert_trees_all_equal((got.tokens, got.mask, got.ended), (expected.tokens, expected.mask, expected.ended))
    np.testing.assert_allclose(got.logp, expected.logp, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_sampler_and_the_trainer_agree_on_log_probabilities(temperature):
    got = rollout(eos_ids=ends(), sampler=Sampler(temperature=temperature))
    hidden = quick_jit(hidden_states, static_argnums=0)(CONFIG, PARAMS, unpacked(PROMPT, got.tokens))
    scored = token_logprobs(hidden, head(CONFIG, PARAMS), got.tokens, temperature=temperature).logp
    assert 0 < got.mask.sum() < got.mask.size
    np.testing.assert_allclose(got.logp[got.mask], scored[got.mask], atol=1e-5)
    other = token_logprobs(hidden, head(CONFIG, PARAMS), got.tokens, temperature=2 * temperature).logp
    assert float(jnp.abs(got.logp - other)[got.mask].max()) > 0.1


def test_without_a_sampler_the_models_temperature_is_drawn_at_and_scored():
    config = dataclasses.replace(CONFIG, temperature=0.7)
    got = generated(config, published, PROMPT, KEYS, max_tokens=T, eos_ids=ends())
    chex.assert_trees_all_equal(got, rollout(eos_ids=ends()))
    assert_plain(got, eos_ids=ends(), temperature=0.7)
    scored = quick_jit(token_scores, static_argnums=0)(config, PARAMS, unpacked(PROMPT, got.tokens)).logp
    np.testing.assert_allclose(got.logp[got.mask], scored[got.mask], atol=1e-5)


@dataclasses.dataclass(frozen=True, eq=False)
class Counted:
    """A sampler that counts the steps of the loop; it makes token 7 likely."""

    bonus: float
    calls: list

    def __call__(self, logits, uniform):
        jax.debug.callback(lambda: self.calls.append(1))
        return Sampler()(logits.at[..., 7].add(self.bonus), uniform)


@pytest.mark.parametrize(
    ("bonus", "check_every", "length"), [(1e3, 1, 12), (1e3, 5, 12), (3.0, 2, 40), (3.0, 7, 40), (-1e3, 5, 12)]
)
def test_the_loop_stops_at_the_first_test_that_finds_all_ended(bonus, check_every, length):
    counted = Counted(bonus, [])
    got = rollout(eos_ids=(7,), sampler=counted, max_tokens=length, check_every=check_every)
    longest = int(lengths(got).max())
    jax.effects_barrier()
    assert len(counted.calls) == check_every * math.ceil(longest / check_every)
    # The three cases: all end at once, all end early, none ends.
    assert longest == {1e3: 1, -1e3: length}.get(bonus, longest)
    assert bool(got.ended.all()) == (bonus > 0)
    if bonus == 3.0:
        assert 1 < longest < length - check_every


def test_a_completion_does_not_depend_on_the_prompts_that_share_its_batch():
    others = tiny_prompts((6, 1, 2, 4), seed=1)
    mixed = jax.tree.map(lambda x, y: x.at[2:].set(y[2:]), PROMPT, others)
    keys = KEYS.at[2:].set(sample_keys(1, 0, jnp.arange(P), G)[2:])
    a, b = rollout(eos_ids=ends()), rollout(mixed, keys, eos_ids=ends())
    chex.assert_trees_all_equal(*(jax.tree.map(lambda x: x[:2], r) for r in (a, b)))
    assert not np.array_equal(a.tokens[2:], b.tokens[2:])


def test_a_completion_follows_its_key_to_any_place():
    order, samples = np.array([2, 0, 3, 1]), np.array([1, 2, 0])
    moved = rollout(jax.tree.map(lambda x: x[order], PROMPT), KEYS[order][:, samples], eos_ids=ends())
    chex.assert_trees_all_equal(moved, jax.tree.map(lambda x: x[order][:, samples], rollout(eos_ids=ends())))


def test_samples_of_a_prompt_differ_because_their_keys_do():
    drawn = np.asarray(open_ended().tokens)
    assert all(len({tuple(row) for row in group}) == G for group in drawn.tolist())
    same = np.asarray(rollout(keys=jnp.broadcast_to(KEYS[:, :1], KEYS.shape)).tokens)
    np.testing.assert_array_equal(same, np.repeat(drawn[:, :1], G, 1))


def test_prompts_of_one_token():
    prompt = tiny_prompts((1, 1))
    keys = sample_keys(0, 0, jnp.arange(2), 1)
    assert prompt.tokens.shape == (2, 1)
    assert_plain(rollout(prompt, keys), prompt, keys)


def test_greedy_completions_of_a_prompt_are_all_the_most_likely_one():
    got = rollout(sampler=Sampler(temperature=0))
    for p in range(P):
        text = np.asarray(PROMPT.tokens[p])[np.asarray(PROMPT.mask[p])].tolist()
        for t in range(T):
            token = int(plain_step(tuple(text), 1.0).argmax())
            assert (got.tokens[p, :, t] == token).all()
            text.append(token)
    np.testing.assert_array_equal(got.logp, 0.0)


def computations(text):
    """The computations of an optimised HLO module: name to lines."""
    found, name = {}, None
    for line in re.sub(r", metadata=\{[^}]*\}", "", text).splitlines():
        if opened := re.match(r"(?:ENTRY )?%([\w.\-]+) \(.*\{$", line):
            name = opened[1]
            found[name] = []
        elif name is not None:
            found[name].append(line)
    return found


def looped(found):
    """The computations that a `while` runs, directly or through calls, fusions and further loops."""
    waiting = [name for lines in found.values() for line in lines for name in re.findall(r"body=%([\w.\-]+)", line)]
    seen = {}
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen[name] = found[name]
            # Taking every name of a computation for a call of it can only look at more.
            waiting += [n for line in found[name] for n in re.findall(r"%([\w.\-]+)", line) if n in found]
    return seen


def test_the_loop_updates_its_caches_in_place():
    """In the compiled loop, nothing but a slice written into it makes an array of a cache's shape."""
    length = 16
    lowered = (
        jit(sample, **STATIC)
        .jitted()
        .lower(CONFIG, published, PROMPT, KEYS, max_tokens=length, eos_ids=(7,), sampler=Sampler(), check_every=4)
    )
    found = computations(lowered.compile({"xla_backend_optimization_level": 0}).as_text())
    before, C = f"{P},{CONFIG.kv_heads},{G}", CONFIG.head_width
    made = re.compile(rf"= f32\[{before},(?:{C},{length}|{length},{C})\]\S* ([\w\-]+)\((?:.*calls=%([\w.\-]+))?")
    opcodes = []
    for line in (line for lines in looped(found).values() for line in lines):
        if cache := made.search(line):
            opcode, fused = cache.groups()
            if opcode == "fusion":  # is what its root is
                opcode = next(made.search(inner)[1] for inner in found[fused] if "ROOT" in inner)
                assert opcode == "dynamic-update-slice", line
            opcodes.append(opcode)
    writes = opcodes.count("dynamic-update-slice")
    assert writes in (2 * CONFIG.layers, 4 * CONFIG.layers), "a key and a value of each layer, alone or in a fusion"
    assert set(opcodes) == {"dynamic-update-slice", "get-tuple-element", "parameter"}

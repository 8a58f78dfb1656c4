"""The decoder against a float64 NumPy one that knows neither segments nor caches nor stacked layers."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core import token_logprobs
from grpo_jax.models import DecoderConfig, decode, empty_cache, head, hidden_states, init, logical_axes, prefill
from grpo_jax.rollout import publish
from grpo_jax.testing.decoder import log_softmax, plain_logits
from grpo_jax.testing.tiny import tiny_config, tiny_prompts
from grpo_jax.types import PromptBatch

FAMILIES = {
    "llama": tiny_config(tied=False),
    "qwen2": tiny_config(qkv_bias=True),
    "qwen3": tiny_config(qk_norm=True, head_width=6),
    "one head each": tiny_config(heads=2, kv_heads=2, rope_theta=1e6),
}
T = 7


def randomised(config, seed=0):
    """Parameters without zeros or ones, so that no bias or scale can hide."""
    params = init(config, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def completions(prompts, group=3, vocab=23):
    return jax.random.randint(jax.random.key(9), (prompts, group, T), 0, vocab)


def expected_logits(config, params, prompt, tokens):
    """The logits that predict each completion token, from the concatenated sequence."""
    P, G, _ = tokens.shape
    out = np.zeros((P, G, T, config.vocab))
    for p in range(P):
        text = np.asarray(prompt.tokens[p])[np.asarray(prompt.mask[p])].tolist()
        for g in range(G):
            out[p, g] = plain_logits(config, params, text + tokens[p, g].tolist())[len(text) - 1 : -1]
    return out


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_the_training_forward_equals_the_plain_one_at_every_position(config):
    params, prompt = randomised(config), tiny_prompts()
    tokens = completions(4)
    got = hidden_states(config, params, prompt, tokens) @ head(params)
    np.testing.assert_allclose(got, expected_logits(config, params, prompt, tokens), atol=3e-5)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_cached_decoding_equals_the_plain_forward_at_every_position(config):
    params, prompt = randomised(config), tiny_prompts()
    tokens = completions(4)
    expected = expected_logits(config, params, prompt, tokens)
    published = publish(config, params)
    segments, cache = prefill(config, published, prompt), empty_cache(config, 4, 3, T)
    last = jnp.take_along_axis(prompt.tokens, prompt.mask.sum(-1, keepdims=True) - 1, -1)
    inputs = jnp.concatenate([jnp.broadcast_to(last[:, None], (4, 3, 1)), tokens[..., :-1]], -1)
    step = jax.jit(partial(decode, config))
    for t in range(T):
        logits, cache = step(published, prompt, segments, cache, inputs[..., t], t)
        np.testing.assert_allclose(logits, expected[..., t, :], atol=3e-5)
        np.testing.assert_allclose(jax.nn.log_softmax(logits), log_softmax(expected[..., t, :]), atol=3e-5)


def mean_logp(config, params, prompt, tokens, weight):
    scored = token_logprobs(hidden_states(config, params, prompt, tokens), head(params), tokens, chunk=3)
    return (scored.logp * weight).mean()


def test_a_shared_prompt_equals_a_repeated_one_in_value_and_gradient():
    config = FAMILIES["qwen3"]
    params, prompt, tokens = randomised(config), tiny_prompts(), completions(4)
    weight = jax.random.normal(jax.random.key(3), tokens.shape)
    repeated = PromptBatch(tokens=jnp.repeat(prompt.tokens, 3, 0), mask=jnp.repeat(prompt.mask, 3, 0))
    alone = tokens.reshape(12, 1, T), weight.reshape(12, 1, T)
    value = jax.value_and_grad(partial(mean_logp, config))
    shared_value, shared_gradient = value(params, prompt, tokens, weight)
    alone_value, alone_gradient = value(params, repeated, *alone)
    assert abs(shared_value - alone_value) < 1e-6
    chex.assert_trees_all_close(shared_gradient, alone_gradient, atol=2e-6)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(shared_gradient)) > 1e-3


def test_the_gradient_reaches_the_prompt_through_its_keys_and_values():
    """The embedding of a token that only a prompt holds moves the completions' log-probs as finite differences say."""
    config = tiny_config(tied=False)
    params, tokens = randomised(config), completions(1) % 20
    prompt = PromptBatch(tokens=jnp.array([[21, 22, 5]]), mask=jnp.ones((1, 3), bool))
    loss = lambda params: mean_logp(config, params, prompt, tokens, 1.0)  # noqa: E731
    gradient = jax.grad(loss)(params)["embed"][21]
    direction = jax.random.normal(jax.random.key(0), gradient.shape)
    moved = [{**params, "embed": params["embed"].at[21].add(sign * 1e-2 * direction)} for sign in (1, -1)]
    difference = (loss(moved[0]) - loss(moved[1])) / 2e-2
    assert abs(float(difference)) > 1e-3
    np.testing.assert_allclose(gradient @ direction, difference, rtol=2e-2)


@pytest.mark.parametrize("change", [{"remat": "layer"}, {"unroll": 2}], ids=str)
def test_how_the_layers_are_run_changes_neither_value_nor_gradient(change):
    config = FAMILIES["qwen3"]
    params, prompt, tokens = randomised(config), tiny_prompts(), completions(4)
    results = [
        jax.jit(jax.value_and_grad(partial(mean_logp, c)))(params, prompt, tokens, 1.0)
        for c in (config, dataclasses.replace(config, **change))
    ]
    chex.assert_trees_all_close(*results, atol=1e-6)


def test_what_follows_a_token_does_not_change_it():
    config = FAMILIES["llama"]
    params, prompt, tokens = randomised(config), tiny_prompts(), completions(4)
    other = tokens.at[..., 4:].set(1)
    a, b = (hidden_states(config, params, prompt, x) for x in (tokens, other))
    chex.assert_trees_all_equal(a[..., :5, :], b[..., :5, :])


def test_prompt_padding_does_not_change_anything():
    config = FAMILIES["llama"]
    params, prompt, tokens = randomised(config), tiny_prompts(), completions(4)
    other = PromptBatch(tokens=jnp.where(prompt.mask, prompt.tokens, 7), mask=prompt.mask)
    a, b = (hidden_states(config, params, p, tokens) for p in (prompt, other))
    chex.assert_trees_all_equal(a, b)


def test_bfloat16_computes_in_bfloat16_and_stays_near_float32():
    config = FAMILIES["llama"]
    params, prompt, tokens = randomised(config), tiny_prompts(), completions(4)
    half = hidden_states(dataclasses.replace(config, dtype="bfloat16"), params, prompt, tokens)
    assert half.dtype == jnp.bfloat16
    whole = hidden_states(config, params, prompt, tokens)
    assert float(jnp.abs(half - whole).mean()) < 0.05


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_every_parameter_has_logical_axes_of_its_rank(config):
    params, axes = init(config, jax.random.key(0)), logical_axes(config)
    shapes = {jax.tree_util.keystr(path): leaf.ndim for path, leaf in jax.tree.leaves_with_path(params)}
    named = jax.tree.leaves_with_path(axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    assert {jax.tree_util.keystr(path): len(names) for path, names in named} == shapes


def test_layers_start_different_and_from_the_key_alone():
    config = tiny_config()
    params = init(config, jax.random.key(0))
    assert not np.allclose(params["layers"]["down"][0], params["layers"]["down"][1])
    chex.assert_trees_all_equal(params, init(config, jax.random.key(0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "heads: 3 is not a multiple of kv_heads 2"),
        ({"head_width": 5}, "head_width: 5 is odd"),
        ({"remat": "some"}, "remat: 'some'; expected"),
    ],
)
def test_an_impossible_shape_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**{**dataclasses.asdict(tiny_config()), **change})

"""The decoder against a float64 NumPy one that knows neither segments nor caches nor stacked layers."""

import dataclasses
import functools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core import token_logprobs
from grpo_jax.core.naming import show
from grpo_jax.mesh.settings import TOGETHER
from grpo_jax.models import (
    DecoderConfig,
    decode,
    decoder,
    empty_cache,
    head,
    hidden_states,
    init,
    logical_axes,
    prefill,
    unpacked,
    weight_kinds,
)
from grpo_jax.models.attention import soft_cap
from grpo_jax.models.decoder import last_token
from grpo_jax.models.rope_scaling import Linear, Yarn
from grpo_jax.rollout import publish
from grpo_jax.testing.decoder import log_softmax, plain_logits
from grpo_jax.testing.tiny import tiny_config, tiny_prompts
from grpo_jax.types import PromptBatch
from tests.rollout.small import quick_jit, random_params

FAMILIES = {
    "llama": tiny_config(tied=False),
    "qwen2": tiny_config(qkv_bias=True),
    "qwen3": tiny_config(qk_norm=True, head_width=6),
    "one head each": tiny_config(heads=2, kv_heads=2, rope_theta=1e6),
    # Prompts of 1 to 6 tokens: the windows begin before the prompt, inside it, and inside the completion.
    "window": tiny_config(local=(True, True), window=3, out_bias=True, qkv_bias=True),
    "window and globe": tiny_config(
        local=(True, False), window=4, local_rope_theta=50.0, rope_scaling=Linear(factor=3)
    ),
    "gemma": tiny_config(
        local=(False, True),
        window=2,
        query_scalar=3.0,
        attention_cap=0.7,
        final_cap=1.5,
        zero_centred=True,
        post_norms=True,
        scaled_embed=True,
        activation="gelu_tanh",
    ),
    "experts": tiny_config(mlp=8, experts=5, experts_per_token=2, normalised_routing=True, tied=False),
    "yarn": tiny_config(
        rope_theta=20.0, rope_scaling=Yarn(factor=4.0, original=8, attention_factor=1.3, beta_fast=1.0, beta_slow=0.2)
    ),
}
PROMPT = tiny_prompts()
P, G, T = 4, 3, 7
TOKENS = jax.random.randint(jax.random.key(9), (P, G, T), 0, 23)

states = quick_jit(hidden_states, static_argnums=0)


@partial(quick_jit, static_argnums=0)
def decode_all(config, params, prompt, tokens):
    """The logits `[T, P, G, V]` that cached decoding gives when it is fed these tokens."""
    published = publish(config, params)
    segments, cache = prefill(config, published, prompt), empty_cache(config, *tokens.shape)
    first = jnp.broadcast_to(last_token(prompt)[:, None, None], (*tokens.shape[:2], 1))
    inputs = jnp.moveaxis(jnp.concatenate([first, tokens[..., :-1]], -1), -1, 0)

    def step(cache, now):
        logits, cache = decode(config, published, prompt, segments, cache, now[0], now[1], jnp.zeros_like(now[0]))
        return cache, logits

    return jax.lax.scan(step, cache, (inputs, jnp.arange(tokens.shape[-1])))[1]


def mean_logp(config, params, prompt, tokens, weight):
    hidden = hidden_states(config, params, unpacked(prompt, tokens))
    scored = token_logprobs(hidden, head(config, params), tokens, chunk=3, soft_cap=config.final_cap)
    return (scored.logp * weight).mean()


value_and_gradient = quick_jit(jax.value_and_grad(mean_logp, argnums=1), static_argnums=0)


def plain_completion_logits(config, params, prompt, tokens):
    """The float64 logits that predict each completion token, from the concatenated sequence."""
    out = np.zeros((*tokens.shape, config.vocab))
    for p, g in np.ndindex(*tokens.shape[:2]):
        text = np.asarray(prompt.tokens[p])[np.asarray(prompt.mask[p])].tolist()
        out[p, g] = plain_logits(config, params, text + tokens[p, g].tolist())[len(text) - 1 : -1]
    return out


def plain_mean_logp(config, params, prompt, tokens, weight):
    """`mean_logp` in float64."""
    logp = log_softmax(plain_completion_logits(config, params, prompt, tokens))
    return (np.take_along_axis(logp, np.asarray(tokens)[..., None], -1)[..., 0] * np.float64(weight)).mean()


@functools.cache
def expected_logits(config):
    return plain_completion_logits(config, random_params(config), PROMPT, TOKENS)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_the_training_forward_equals_the_plain_one_at_every_position(config):
    params = random_params(config)
    got = soft_cap(states(config, params, unpacked(PROMPT, TOKENS)) @ head(config, params), config.final_cap)
    np.testing.assert_allclose(got, expected_logits(config), atol=3e-5)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_cached_decoding_equals_the_plain_forward_at_every_position(config):
    logits = jnp.moveaxis(decode_all(config, random_params(config), PROMPT, TOKENS), 0, 2)
    np.testing.assert_allclose(logits, expected_logits(config), atol=3e-5)
    np.testing.assert_allclose(jax.nn.log_softmax(logits), log_softmax(expected_logits(config)), atol=3e-5)


def test_a_shared_prompt_equals_a_repeated_one_in_value_and_gradient():
    config = FAMILIES["qwen3"]
    params, weight = random_params(config), jax.random.normal(jax.random.key(3), TOKENS.shape)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, G, 0), PROMPT)
    alone = TOKENS.reshape(P * G, 1, T), weight.reshape(P * G, 1, T)
    shared_value, shared_gradient = value_and_gradient(config, params, PROMPT, TOKENS, weight)
    alone_value, alone_gradient = value_and_gradient(config, params, repeated, *alone)
    assert abs(shared_value - alone_value) < 1e-6
    chex.assert_trees_all_close(shared_gradient, alone_gradient, atol=2e-6)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(shared_gradient)) > 1e-3


def moved_by(params, path, delta):
    """float64 parameters with `delta` added to the leaf at `path`."""

    def moved(at, x):
        return np.asarray(x, np.float64) + (delta if at == path else 0.0)

    return jax.tree_util.tree_map_with_path(moved, params)


def test_the_gradient_reaches_the_prompt_through_its_keys_and_values():
    """The embedding of tokens that only the prompt holds moves the completions' log-probs as float64 differences say.

    The head is not tied, so these rows act on the completions through nothing but keys and values of the prompt.
    """
    config = FAMILIES["llama"]
    params, tokens = random_params(config), TOKENS[:1] % 20
    prompt = PromptBatch(tokens=jnp.array([[21, 22, 5]]), mask=jnp.ones((1, 3), bool))
    weight = np.ones(tokens.shape)
    gradient = value_and_gradient(config, params, prompt, tokens, weight)[1]["embed"][21:23]
    path, step = (jax.tree_util.DictKey("embed"),), 1e-5
    difference = np.zeros(gradient.shape)
    for row, column in np.ndindex(*gradient.shape):
        delta = np.zeros(params["embed"].shape)
        delta[21 + row, column] = step
        ends = [plain_mean_logp(config, moved_by(params, path, s * delta), prompt, tokens, weight) for s in (1, -1)]
        difference[row, column] = (ends[0] - ends[1]) / (2 * step)
    assert np.abs(difference).max() > 1e-3
    np.testing.assert_allclose(gradient, difference, atol=1e-6)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "window and globe", "gemma", "experts"])
def test_the_gradient_of_every_parameter_is_that_of_the_plain_forward(family):
    """Along a random direction of each leaf, against float64 differences."""
    config = FAMILIES[family]
    params, weight, step = random_params(config), jax.random.normal(jax.random.key(3), TOKENS.shape), 1e-5
    leaves = jax.tree_util.tree_leaves_with_path(value_and_gradient(config, params, PROMPT, TOKENS, weight)[1])
    rng = np.random.default_rng(0)
    for path, gradient in leaves:
        along = rng.normal(size=gradient.shape)
        ends = [
            plain_mean_logp(config, moved_by(params, path, s * along), PROMPT, TOKENS, weight) for s in (step, -step)
        ]
        expected = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose((gradient * along).sum(), expected, rtol=1e-4, atol=1e-6, err_msg=str(path))


@pytest.mark.parametrize("family", ["qwen3", "window and globe"])
@pytest.mark.parametrize("change", [{"remat": "layer"}, {"unroll": 2}], ids=show)
def test_how_the_layers_are_run_changes_neither_value_nor_gradient(family, change):
    config = FAMILIES[family]
    weight = jax.random.normal(jax.random.key(3), TOKENS.shape)
    results = [
        value_and_gradient(c, random_params(config), PROMPT, TOKENS, weight)
        for c in (config, dataclasses.replace(config, **change))
    ]
    chex.assert_trees_all_close(*results, atol=1e-6)


@pytest.mark.parametrize("local", [(True, True), (True, False)])
def test_a_window_over_all_there_is_costs_nothing(local):
    """The program is that of a model without windows, but for a flag beside the parameters."""
    plain = tiny_config()

    def products(config):
        trace = jax.make_jaxpr(hidden_states, static_argnums=0)(config, random_params(plain), unpacked(PROMPT, TOKENS))
        return sorted(str(eqn.primitive) for eqn in trace.eqns if eqn.primitive.name != "scan"), [
            len(eqn.params["jaxpr"].eqns) for eqn in trace.eqns if eqn.primitive.name == "scan"
        ]

    reach = PROMPT.tokens.shape[-1] + T - 1
    assert products(tiny_config(local=local, window=reach)) == products(plain)
    assert products(tiny_config(local=local, window=reach - 1)) != products(plain)


@pytest.mark.parametrize("family", ["llama", "experts"])
def test_what_follows_a_token_does_not_change_it(family):
    config = FAMILIES[family]
    a, b = (states(config, random_params(config), unpacked(PROMPT, x)) for x in (TOKENS, TOKENS.at[..., 4:].set(1)))
    chex.assert_trees_all_equal(a[..., :5, :], b[..., :5, :])
    assert float(jnp.abs(a[..., 5:, :] - b[..., 5:, :]).min(-1).max()) > 1e-3


def test_prompt_padding_does_not_change_anything():
    config = FAMILIES["llama"]
    other = PromptBatch(tokens=jnp.where(PROMPT.mask, PROMPT.tokens, 7), mask=PROMPT.mask)
    a, b = (states(config, random_params(config), unpacked(p, TOKENS)) for p in (PROMPT, other))
    chex.assert_trees_all_equal(a, b)


def test_bfloat16_computes_in_bfloat16_and_stays_near_float32():
    config = FAMILIES["llama"]
    params = random_params(config)
    half = states(dataclasses.replace(config, dtype="bfloat16"), params, unpacked(PROMPT, TOKENS))
    assert half.dtype == jnp.bfloat16
    assert float(jnp.abs(half - states(config, params, unpacked(PROMPT, TOKENS))).mean()) < 0.05


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_every_parameter_has_logical_axes_of_its_rank(config):
    params, axes = random_params(config), logical_axes(config)
    shapes = {jax.tree_util.keystr(path): leaf.ndim for path, leaf in jax.tree.leaves_with_path(params)}
    named = jax.tree.leaves_with_path(axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    assert {jax.tree_util.keystr(path): len(names) for path, names in named} == shapes


def kind_by_name(path):
    """Norms hold `scale`, biases are called so, and everything else multiplies."""
    name = path[-1].key
    return "norm" if name == "scale" else "bias" if name.endswith("_bias") else "matrix"


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_every_parameter_says_whether_it_is_a_matrix_a_bias_or_a_norm(config):
    params, kinds = random_params(config), weight_kinds(config)
    found = jax.tree_util.tree_map_with_path(lambda path, _: kind_by_name(path), params)
    assert kinds == found
    # Stacked over layers, norms and biases have ranks that matrices of one layer have.
    assert params["layers"]["mlp_norm"]["scale"].ndim == params["embed"].ndim
    assert kinds["layers"]["mlp_norm"]["scale"] == kinds["norm"]["scale"] == "norm"
    assert {kinds["embed"], kinds["layers"]["out"], kinds["layers"]["down"]} == {"matrix"}


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_axes_that_meet_on_a_parameter_are_known_to_the_rules(config):
    """Otherwise rules that send both to one mesh axis would be refused by the model, not where they are written."""
    axes = jax.tree.leaves(logical_axes(config), is_leaf=lambda leaf: isinstance(leaf, tuple))
    for names in axes:
        met = set(names) - {None}
        assert any(met <= set(together) for together in TOGETHER), names


def test_layers_start_different_and_from_the_key_alone():
    start = partial(init, tiny_config())
    draw = quick_jit(start)
    first, other = draw(jax.random.key(0)), draw(jax.random.key(1))
    for name, of in {"down": lambda params: params["layers"]["down"], "embed": lambda params: params["embed"]}.items():
        assert not np.allclose(of(first)[0], of(first)[1]), name
        assert not np.allclose(of(first), of(other)), name
    # A second trace makes the same program of the key: no state outside it was read.
    programs = [jax.make_jaxpr(start)(jax.random.key(0)) for _ in range(2)]
    assert str(programs[0]) == str(programs[1])
    chex.assert_trees_all_equal(programs[0].consts, programs[1].consts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "heads: 3 is not a multiple of kv_heads 2"),
        ({"head_width": 5}, "head_width: 5 is odd"),
        ({"remat": "some"}, "remat: 'some'; expected"),
        ({"activation": "relu"}, "activation: 'relu'; expected one of silu, gelu_tanh"),
        ({"local": (True,), "window": 3}, "local: 1 entries for 2 layers"),
        ({"local": (True, False)}, "window: None; local layers need"),
        ({"local": (True, False), "window": 0}, "window: 0; a query sees at least its own token"),
        ({"temperature": 0.0}, "temperature: 0.0; expected a finite number above 0"),
        ({"temperature": float("inf")}, "temperature: inf; expected a finite number above 0"),
        ({"temperature": float("nan")}, "temperature: nan; expected a finite number above 0"),
        ({"experts": 4, "experts_per_token": 5}, "experts_per_token: 5; expected 1 to 4, the number of experts"),
        ({"experts": 4}, "experts_per_token: 0; expected 1 to 4"),
        ({"experts_per_token": 2}, "experts_per_token: 2, but the model has no experts; set experts"),
    ],
)
def test_an_impossible_shape_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**{**dataclasses.asdict(tiny_config()), **change})


def test_the_embeddings_gradient_is_summed_in_float32():
    """One token at 4096 places, each with the cotangent 1: in bfloat16 the sum would stop growing at 256 or 512."""
    config = tiny_config(dtype="bfloat16")
    tokens = jnp.full((1, 4096), 5)

    def loss(params):
        return decoder._embed(config, params, tokens).astype(jnp.float32).sum()

    gradient = jax.grad(loss)(random_params(config))["embed"]
    np.testing.assert_array_equal(gradient[5], 4096.0)
    assert not np.delete(gradient, 5, 0).any()

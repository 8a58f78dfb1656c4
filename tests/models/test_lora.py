"""Low-rank adapters: what they add, where it is added, and their gradient from that of the dense matrix."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.mesh import Rules, specs
from grpo_jax.models import Lora, attach, decoder, head, hidden_states, init_lora, lora_axes, merge_adapters, unpacked
from grpo_jax.models.adapters import TARGETS, product
from grpo_jax.rollout import publish
from grpo_jax.testing.tiny import tiny_config, tiny_prompts
from tests.models.test_decoder import decode_all
from tests.rollout.small import merge, quick_jit, random_params

P, G, T, RANK = 4, 3, 7, 3
LORA = Lora(rank=RANK, alpha=2.0)
PROMPT = tiny_prompts()
TOKENS = jax.random.randint(jax.random.key(9), (P, G, T), 0, 23)
CONFIGS = {
    "dense": tiny_config(qkv_bias=True, qk_norm=True, tied=False),
    "recomputed": tiny_config(remat="layer"),
    "dots": tiny_config(remat="dots"),
    "experts": tiny_config(experts=3, experts_per_token=2),
    "local": tiny_config(local=(True, False), window=3),
    "half": tiny_config(dtype="bfloat16"),
}
D, K, R, C, M, L, E = 16, 2, 2, 4, 24, 2, 3
states = quick_jit(hidden_states, static_argnums=0)
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
exact = pytest.mark.parametrize("name", [name for name in CONFIGS if name != "half"])


@functools.cache
def random_adapters(config, lora=LORA, seed=1):
    """Adapters as training leaves them: B is no longer 0."""
    shapes = jax.eval_shape(lambda: init_lora(config, lora, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, jnp.float32), shapes)


def leaf(tree, target):
    """A target's matrix in a tree of layers."""
    for key in TARGETS[target]:
        tree = tree[key]
    return tree


SHAPES = {
    "q": ((L, D, RANK), (L, RANK, K, R, C)),
    "k": ((L, D, RANK), (L, RANK, K, C)),
    "v": ((L, D, RANK), (L, RANK, K, C)),
    "out": ((L, K, R, C, RANK), (L, RANK, D)),
    "gate": ((L, D, RANK), (L, RANK, M)),
    "up": ((L, D, RANK), (L, RANK, M)),
    "down": ((L, M, RANK), (L, RANK, D)),
}
EXPERT_SHAPES = SHAPES | {
    "gate": ((L, E, D, RANK), (L, E, RANK, M)),
    "up": ((L, E, D, RANK), (L, E, RANK, M)),
    "down": ((L, E, M, RANK), (L, E, RANK, D)),
}


@pytest.mark.parametrize(("name", "shapes"), [("dense", SHAPES), ("experts", EXPERT_SHAPES)])
def test_factors_have_the_axes_of_their_matrix_and_add_nothing_at_the_start(name, shapes):
    adapters = init_lora(CONFIGS[name], LORA, jax.random.key(0))
    assert {target: (f["a"].shape, f["b"].shape) for target, f in adapters.items()} == shapes
    assert {x.dtype for x in jax.tree.leaves(adapters)} == {jnp.dtype("float32")}
    assert all(not f["b"].any() for f in adapters.values())
    weights = random_params(CONFIGS[name])["layers"]
    for target, factors in adapters.items():
        assert leaf(weights, target).ndim == product(**factors, ndim=leaf(weights, target).ndim).ndim


def test_a_has_the_variance_of_one_over_the_inputs_and_does_not_depend_on_the_other_targets():
    config = tiny_config(hidden=64, mlp=96)
    adapters = init_lora(config, Lora(rank=64, alpha=1.0), jax.random.key(0))
    for target, inputs in (("q", 64), ("out", 16), ("up", 64), ("down", 96)):
        assert float(jnp.var(adapters[target]["a"])) * inputs == pytest.approx(1, abs=0.06), target
    few = init_lora(config, Lora(rank=64, alpha=1.0, targets=("up", "q")), jax.random.key(0))
    chex.assert_trees_all_equal(few, {target: adapters[target] for target in ("q", "up")})
    drawn = [np.asarray(f["a"]).ravel()[:8] for f in adapters.values()]
    assert len({tuple(x) for x in drawn}) == len(TARGETS)


@pytest.mark.parametrize("name", ["dense", "experts"])
def test_a_mesh_splits_factors_as_it_splits_their_matrix(name):
    """The input axes are A's, the output axes B's, and the rank is kept whole."""
    config = CONFIGS[name]
    axes = lora_axes(config, LORA)
    weights = decoder.logical_axes(config)["layers"]
    for target, factors in init_lora(config, LORA, jax.random.key(0)).items():
        a, b = axes[target]["a"], axes[target]["b"]
        assert (len(a), len(b)) == (factors["a"].ndim, factors["b"].ndim)
        shared = 2 if name == "experts" and target in ("gate", "up", "down") else 1
        assert a[-1] is b[shared] is None
        assert (*a[:-1], *b[shared + 1 :]) == leaf(weights, target)
        assert a[:shared] == b[:shared]
    specs(Rules(), axes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("q", "head")}, r"targets\.1\s+Input should be 'q', 'k', 'v', 'out', 'gate', 'up' or 'down'"),
        ({"targets": ("embed",)}, r"targets\.0\s+Input should be 'q'"),
        ({"targets": ()}, r"targets: value \[\]; expected at least one"),
        ({"targets": ("q", "q")}, r"targets: value \['q', 'q'\]; .* each of them once"),
        ({"rank": 0}, r"rank\s+Input should be greater than or equal to 1"),
        ({"alpha": 0.0}, r"alpha\s+Input should be greater than 0"),
        ({"alpha": float("nan")}, r"alpha\s+Input should be a finite number"),
    ],
)
def test_what_cannot_be_adapted_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Lora(**{"rank": 2, "alpha": 4.0, **changes})


@configs
def test_new_adapters_change_no_bit_of_the_forward_pass_or_of_the_published_weights(config):
    params = random_params(config)
    adapters = init_lora(config, LORA, jax.random.key(0))
    got, expected = (states(config, p, unpacked(PROMPT, TOKENS)) for p in (attach(params, adapters, LORA), params))
    np.testing.assert_array_equal(got, expected)
    chex.assert_trees_all_equal(publish(config, attach(params, adapters, LORA)), publish(config, params))


def tables(config, target, weight, factors):
    """A target's matrix, A and B as tables `[in, out]`, `[in, rank]`, `[rank, out]`, one per layer (and expert)."""
    count = L * E if config.experts and target in ("gate", "up", "down") else L
    inputs = {"out": K * R * C, "down": M}.get(target, D)
    shapes = (count, inputs, -1), (count, inputs, RANK), (count, RANK, -1)
    values = weight, factors["a"], factors["b"]
    return [np.asarray(x, np.float64).reshape(shape) for x, shape in zip(values, shapes, strict=True)]


@pytest.mark.parametrize("name", ["dense", "experts"])
def test_merged_weights_are_w_plus_alpha_over_rank_times_a_b(name):
    """Written out with tables in float64; everything that is no target stays as it is, bit for bit."""
    config = CONFIGS[name]
    params, adapters = random_params(config), random_adapters(config)
    merged = merge(params, adapters, LORA)
    chex.assert_trees_all_equal_shapes_and_dtypes(merged, params)
    for target in TARGETS:
        w, a, b = tables(config, target, leaf(params["layers"], target), adapters[target])
        got = np.asarray(leaf(merged["layers"], target)).reshape(w.shape)
        np.testing.assert_allclose(got, w + 2.0 / 3.0 * a @ b, atol=1e-6)
        assert np.abs(got - w).max() > 0.1
    only = merge(params, {"up": adapters["up"]}, LORA)
    changed = jax.tree.map(lambda x, y: bool((x != y).any()), only, params)
    assert changed["layers"]["mlp"].pop("up")
    assert not any(jax.tree.leaves(changed))


@exact
def test_adapters_inside_the_scan_give_what_merged_weights_give(name):
    config = CONFIGS[name]
    params, adapters = random_params(config), random_adapters(config)
    inside = states(config, attach(params, adapters, LORA), unpacked(PROMPT, TOKENS))
    np.testing.assert_allclose(
        inside, states(config, merge(params, adapters, LORA), unpacked(PROMPT, TOKENS)), atol=1e-6
    )
    assert float(jnp.abs(inside - states(config, params, unpacked(PROMPT, TOKENS))).max()) > 0.1


@pytest.mark.parametrize("name", ["dense", "local", "experts"])
def test_decoding_from_published_weights_equals_the_training_forward(name):
    config = CONFIGS[name]
    params = attach(random_params(config), random_adapters(config), LORA)
    logits = states(config, params, unpacked(PROMPT, TOKENS)) @ head(config, params)
    np.testing.assert_allclose(jnp.moveaxis(decode_all(config, params, PROMPT, TOKENS), 0, 2), logits, atol=3e-5)


def test_published_weights_are_added_up_before_they_are_rounded():
    config = CONFIGS["half"]
    params, adapters = random_params(config), random_adapters(config)
    got = publish(config, attach(params, adapters, LORA))
    assert got["layers"][0]["down"].dtype == jnp.bfloat16
    chex.assert_trees_all_equal(got, publish(config, merge(params, adapters, LORA)))
    rounded = jax.tree.map(lambda x: x.astype("bfloat16"), (params, adapters))
    other = publish(config, merge(*rounded, LORA))
    assert bool((got["layers"][0]["down"] != other["layers"][0]["down"]).any())


@functools.partial(quick_jit, static_argnums=0)
def both_gradients(config, params, adapters):
    """The gradient of one number with respect to the adapters, and to the merged weights."""

    def number(params):
        return jnp.mean(jnp.sin(3 * hidden_states(config, params, unpacked(PROMPT, TOKENS))))

    of_adapters = jax.grad(lambda adapters: number(attach(params, adapters, LORA)))(adapters)
    return of_adapters, jax.grad(number)(merge(params, adapters, LORA))


@exact
def test_the_gradient_of_the_factors_is_that_of_the_dense_matrix_projected(name):
    """W' = W + s A B, so dA = s dW' B^T and dB = s A^T dW', with every matrix a table [in, out] and s = 2 / 3."""
    config = CONFIGS[name]
    adapters = random_adapters(config)
    got, dense = both_gradients(config, random_params(config), adapters)
    for target in TARGETS:
        dw, a, b = tables(config, target, leaf(dense["layers"], target), adapters[target])
        for factor, expected in (("a", 2 / 3 * dw @ b.transpose(0, 2, 1)), ("b", 2 / 3 * a.transpose(0, 2, 1) @ dw)):
            scale = np.abs(expected).max()
            difference = np.asarray(got[target][factor]).reshape(expected.shape) - expected
            assert scale > 1e-5
            assert np.abs(difference).max() < 5e-6 * scale, (target, factor)


def kept(config):
    """Shapes of what the scan over layers keeps for the backward pass."""
    params, adapters = random_params(config), random_adapters(config)

    def loss(adapters):
        return hidden_states(config, attach(params, adapters, LORA), unpacked(PROMPT, TOKENS)).sum()

    scans = [e for e in jax.make_jaxpr(jax.grad(loss))(adapters).eqns if e.primitive.name == "scan"]
    forward = scans[0]
    return {v.aval.shape for v in forward.outvars[forward.params["num_carry"] :]}


@configs
def test_no_merged_weight_is_kept_for_the_backward_pass(config, monkeypatch):
    weights = {leaf(random_params(config)["layers"], target).shape for target in TARGETS}
    assert not kept(config) & weights
    if config.remat == "none":
        # The same reading finds them where everything is kept.
        monkeypatch.setattr(decoder, "keep_no_weights", lambda *_: jax.checkpoint_policies.everything_saveable)
        assert weights <= kept(config)


def test_a_tree_without_adapters_is_merged_to_itself():
    params = random_params(CONFIGS["dense"])
    chex.assert_trees_all_equal(merge_adapters(params), params)
    merged = merge_adapters(attach(params, random_adapters(CONFIGS["dense"]), LORA))
    assert merged.keys() == params.keys()

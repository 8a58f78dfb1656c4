"""The rollout layout holds the same numbers, elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.rollout import publish
from grpo_jax.testing.tiny import tiny_config
from tests.rollout.small import random_params

CONFIG = tiny_config(qkv_bias=True, qk_norm=True, tied=False)
PARAMS = random_params(CONFIG)
PUBLISHED = publish(CONFIG, PARAMS)
D, K, R, C, M = CONFIG.hidden, CONFIG.kv_heads, CONFIG.heads // CONFIG.kv_heads, CONFIG.head_width, CONFIG.mlp


def test_every_layer_is_a_tree_of_its_own_with_fused_projections():
    shapes = {
        "attention": {"qkv": (D, K, R + 2, C), "qkv_bias": (K, R + 2, C)},
        "attention_norm": {"scale": (D,)},
        "q_norm": {"scale": (C,)},
        "k_norm": {"scale": (C,)},
        "out": (K, R, C, D),
        "mlp_norm": {"scale": (D,)},
        "mlp": {"gate_up": (D, 2, M)},
        "down": (M, D),
    }
    assert isinstance(PUBLISHED["layers"], tuple)
    assert [jax.tree.map(jnp.shape, layer) for layer in PUBLISHED["layers"]] == [shapes] * CONFIG.layers
    assert {name: jnp.shape(x) for name, x in PUBLISHED.items() if name not in ("layers", "norm")} == {
        "embed": (CONFIG.vocab, D),
        "head": (D, CONFIG.vocab),
    }


@pytest.mark.parametrize("layer", range(CONFIG.layers))
@pytest.mark.parametrize("suffix", ["", "_bias"])
def test_queries_keys_and_values_stand_side_by_side(layer, suffix):
    fused = PUBLISHED["layers"][layer]["attention"]["qkv" + suffix]
    separate = {name: PARAMS["layers"]["attention"][name + suffix][layer] for name in "qkv"}
    for r in range(R):
        np.testing.assert_array_equal(fused[..., r, :], separate["q"][..., r, :])
    np.testing.assert_array_equal(fused[..., R, :], separate["k"])
    np.testing.assert_array_equal(fused[..., R + 1, :], separate["v"])


@pytest.mark.parametrize("layer", range(CONFIG.layers))
def test_every_other_number_is_where_it_was(layer):
    got, stacked = PUBLISHED["layers"][layer], PARAMS["layers"]
    for i, name in enumerate(("gate", "up")):
        np.testing.assert_array_equal(got["mlp"]["gate_up"][:, i], stacked["mlp"][name][layer])
    for name in ("out", "down"):
        np.testing.assert_array_equal(got[name], stacked[name][layer])
    for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm"):
        np.testing.assert_array_equal(got[name]["scale"], stacked[name]["scale"][layer])
    for name in ("embed", "head"):
        np.testing.assert_array_equal(PUBLISHED[name], PARAMS[name])
    np.testing.assert_array_equal(PUBLISHED["norm"]["scale"], PARAMS["norm"]["scale"])


def test_optional_parts_are_absent_where_the_model_has_none():
    config = tiny_config()
    published = publish(config, random_params(config))
    assert "head" not in published
    assert set(published["layers"][0]["attention"]) == {"qkv"}
    assert set(published["layers"][0]) == {"attention", "attention_norm", "out", "mlp_norm", "mlp", "down"}


def test_the_experts_inner_projections_stand_side_by_side_and_the_router_stays():
    config = tiny_config(mlp=8, experts=5, experts_per_token=2)
    params = random_params(config)
    for i, layer in enumerate(publish(config, params)["layers"]):
        mlp = jax.tree.map(lambda x, i=i: x[i], params["layers"]["mlp"])
        assert set(layer["mlp"]) == {"router", "gate_up"}
        np.testing.assert_array_equal(layer["mlp"]["router"], mlp["router"])
        for n, name in enumerate(("gate", "up")):
            np.testing.assert_array_equal(layer["mlp"]["gate_up"][:, :, n], mlp[name])
        np.testing.assert_array_equal(layer["down"], params["layers"]["down"][i])


def test_weights_are_published_in_the_dtype_they_are_used_in():
    config = tiny_config(qkv_bias=True, qk_norm=True, tied=False, dtype="bfloat16")
    half = publish(config, PARAMS)
    assert {x.dtype for x in jax.tree.leaves(PARAMS)} == {jnp.dtype("float32")}
    for (path, got), exact in zip(jax.tree.leaves_with_path(half), jax.tree.leaves(PUBLISHED), strict=True):
        dtype = "float32" if path[-1].key == "scale" else "bfloat16"
        assert got.dtype == dtype, path
        np.testing.assert_array_equal(got, exact.astype(dtype))

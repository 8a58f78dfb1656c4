"""Logical names to mesh axes, the mesh itself, and arrays on their way in and out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Spec

from grpo_jax.core.naming import show
from grpo_jax.mesh import AXES, Rules, constrain, fetch, make_mesh, sharding, spec, specs
from grpo_jax.models import hidden_states, logical_axes, unpacked
from grpo_jax.testing.tiny import tiny_config, tiny_prompts
from tests.rollout.small import quick_jit, random_params


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(data=2, group=2, fsdp=2)


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ((), Spec()),
        (("prompt",), Spec(("data", "fsdp"))),
        (("prompt", "sample", None), Spec(("data", "fsdp"), "group", None)),
        (("prompt", "kv_heads", "sample"), Spec(("data", "fsdp"), "tensor", "group")),
        (("layers", "embed", "mlp"), Spec(None, "fsdp", "tensor")),
        (("vocab", "embed"), Spec("tensor", "fsdp")),
    ],
)
def test_a_partition_follows_the_rules(axes, expected):
    assert spec(Rules(), axes) == expected


def test_other_rules_can_be_given():
    rules = Rules(embed=None, mlp=("data", "tensor"))
    assert spec(rules, ("embed", "mlp")) == Spec(None, ("data", "tensor"))
    assert rules != Rules()
    assert hash(rules) == hash(Rules(embed=None, mlp=("data", "tensor")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp": "fsdp"}, r"mlp: value 'fsdp'; expected another mesh axis than 'fsdp', which splits embed of the same"),
        (
            {"sample": ("group", "data")},
            "sample: value .*; expected another mesh axis than 'data', which splits",
        ),
        (
            {"kv_heads": "group"},
            "kv_heads: value 'group'; expected another mesh axis than 'group', which",
        ),
        ({"expert": "fsdp"}, "embed: value 'fsdp'; expected another mesh axis than 'fsdp', which splits expert"),
        ({"prompt": ("data", "data")}, "prompt: value .*; expected each mesh axis once"),
        ({"embed": "tensors"}, "Input should be 'data', 'group', 'fsdp' or 'tensor'"),
        ({"width": "tensor"}, "width"),
    ],
)
def test_rules_that_collide_or_do_not_exist_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Rules(**changes)


@pytest.mark.parametrize(("axes", "axis"), [(("vocab", "mlp"), "tensor"), (("prompt", "embed"), "fsdp")])
def test_two_dimensions_on_one_mesh_axis_are_refused(axes, axis):
    with pytest.raises(ValueError, match=rf"^logical axes \('{axes[0]}', '{axes[1]}'\) send .* mesh axis '{axis}'$"):
        spec(Rules(), axes)


def test_a_name_without_a_rule_is_refused():
    with pytest.raises(
        ValueError, match=r"^logical axis 'prompts' of \('prompts', None\) has no rule; known: \['embed'"
    ):
        spec(Rules(), ("prompts", None))


def test_every_rule_names_axes_of_the_mesh():
    used = {axis for field in dataclasses.fields(Rules) for axis in Rules().axes(field.name)}
    assert used == set(AXES)


@pytest.mark.parametrize("changes", [{}, {"tied": False, "qkv_bias": True, "qk_norm": True}], ids=show)
def test_every_parameter_of_a_model_has_a_partition(changes):
    partitions = specs(Rules(), logical_axes(tiny_config(**changes)))
    attention = partitions["layers"]["attention"]
    assert attention["q"] == Spec(None, "fsdp", "tensor", None, None)
    assert partitions["embed"] == Spec("tensor", "fsdp")
    assert partitions["layers"]["down"] == Spec(None, "tensor", "fsdp")
    assert partitions["norm"]["scale"] == Spec(None)
    if changes:
        assert attention["q_bias"] == Spec(None, "tensor", None, None)
        assert partitions["head"] == Spec("fsdp", "tensor")


def test_whole_experts_go_to_the_devices_of_the_tensor_axis():
    layers = specs(Rules(), logical_axes(tiny_config(experts=4, experts_per_token=2)))["layers"]
    assert layers["mlp"]["gate"] == layers["mlp"]["up"] == Spec(None, "tensor", "fsdp", None)
    assert layers["mlp"]["router"] == Spec(None, "fsdp", None)
    assert layers["down"] == Spec(None, "tensor", None, "fsdp")


OTHER = Rules(prompt="data", sample=("group", "fsdp"), embed=None, vocab=("fsdp", "tensor"), mlp=("fsdp", "tensor"))


@pytest.mark.parametrize(("rules", "down", "stream"), [(Rules(), (2, 12, 8), (1, 2)), (OTHER, (2, 6, 16), (2, 1))])
def test_rules_split_a_model_and_its_activations_and_change_no_number(rules, down, stream):
    """Under either rules the hidden states are those of one device, and lie as the rules say."""
    plain = tiny_config(vocab=24)
    config, params = dataclasses.replace(plain, rules=rules), random_params(plain)
    prompt, tokens = tiny_prompts((5, 1, 3, 6)), jax.random.randint(jax.random.key(1), (4, 2, 5), 0, 23)
    expected = quick_jit(hidden_states, static_argnums=0)(plain, params, unpacked(prompt, tokens))
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        parts = specs(rules, logical_axes(config))
        placed = jax.tree.map(lambda x, part: jax.device_put(x, NamedSharding(mesh, part)), params, parts)
        got = quick_jit(hidden_states, static_argnums=0)(config, placed, unpacked(prompt, tokens))
    assert placed["layers"]["down"].addressable_shards[0].data.shape == down
    assert got.addressable_shards[0].data.shape[:2] == stream
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_constrain_without_a_mesh_is_the_identity():
    x = jnp.ones((3, 5))
    assert constrain(Rules(), x, "prompt", "sample") is x
    assert "sharding_constraint" not in str(jax.make_jaxpr(lambda x: constrain(Rules(), x, "prompt"))(x))


def test_constrain_lays_out_the_named_dimensions(mesh):
    with jax.set_mesh(mesh):
        out = jax.jit(lambda x: constrain(Rules(), x + 1, "prompt", "sample"))(jnp.zeros((8, 4, 3)))
    assert out.sharding.is_equivalent_to(NamedSharding(mesh, Spec(("data", "fsdp"), "group")), 3)
    assert {shard.data.shape for shard in out.addressable_shards} == {(2, 2, 3)}
    np.testing.assert_array_equal(out, 1.0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 4), Spec(("data", "fsdp"), "group")),
        ((8, 1), Spec(("data", "fsdp"), None)),
        ((1, 4), Spec(None, "group")),
        ((1, 1), Spec(None, None)),
    ],
)
def test_constrain_keeps_a_dimension_of_one_whole(mesh, shape, expected):
    with jax.set_mesh(mesh):
        (constraint,) = jax.make_jaxpr(lambda x: constrain(Rules(), x, "prompt", "sample"))(jnp.zeros(shape)).eqns
    assert constraint.params["sharding"].spec == expected


def test_sharding_places_leading_dimensions(mesh):
    placed = jax.device_put(np.arange(32).reshape(8, 4), sharding(mesh, Rules(), "prompt", "sample"))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 2)}
    assert placed.sharding == NamedSharding(mesh, Spec(("data", "fsdp"), "group"))


def test_fetch_returns_whole_numpy_arrays(mesh):
    tree = {"a": np.arange(32).reshape(8, 4), "b": (np.float32(3),)}
    placed = {"a": jax.device_put(tree["a"], sharding(mesh, Rules(), "prompt", "sample")), "b": (jnp.float32(3),)}
    got = fetch(placed)
    assert isinstance(got["a"], np.ndarray)
    np.testing.assert_array_equal(got["a"], tree["a"])
    assert got["b"][0] == 3


def test_a_mesh_has_the_four_axes_and_takes_the_first_devices():
    mesh = make_mesh(fsdp=2, tensor=3)
    assert dict(mesh.shape) == {"data": 1, "group": 1, "fsdp": 2, "tensor": 3}
    assert mesh.devices.ravel().tolist() == jax.devices()[:6]
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert make_mesh(data=2, devices=jax.devices()[5:]).devices.ravel().tolist() == jax.devices()[5:7]
    assert make_mesh().size == 1


def test_more_devices_than_there_are_is_an_error_with_the_numbers():
    message = (
        r"^mesh: data=2, group=1, fsdp=4, tensor=2 needs 16 devices, this process sees 8; make the product of the axes "
        "at most 8$"
    )
    with pytest.raises(ValueError, match=message):
        make_mesh(data=2, fsdp=4, tensor=2)
    with pytest.raises(ValueError, match="needs 3 devices, this process sees 2"):
        make_mesh(group=3, devices=jax.devices()[:2])

"""Adapters on disk, read back as PEFT reads them: names, shapes, and W + (alpha / rank) B A."""

import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from grpo_jax.mesh import make_mesh, sharding
from grpo_jax.models import Lora
from grpo_jax.models.families import FAMILIES
from grpo_jax.models.lora import lora_axes
from grpo_jax.models.weights.adapter import save_adapter
from grpo_jax.models.weights.layout import get, make_leaves
from grpo_jax.testing.tiny import tiny_config
from tests.models.test_lora import random_adapters
from tests.rollout.small import merge, random_params

FAMILY = FAMILIES["qwen3"]
CONFIG = tiny_config(qk_norm=True, head_width=6)
LORA = Lora(rank=3, alpha=2.5)
D, H, K, C, M = 16, 4, 2, 6, 24
SHAPES = {
    "self_attn.q_proj": (D, H * C),
    "self_attn.k_proj": (D, K * C),
    "self_attn.v_proj": (D, K * C),
    "self_attn.o_proj": (H * C, D),
    "mlp.gate_proj": (D, M),
    "mlp.up_proj": (D, M),
    "mlp.down_proj": (M, D),
}


def test_the_files_are_those_that_peft_reads(tmp_path):
    save_adapter(random_adapters(CONFIG, LORA), CONFIG, LORA, FAMILY, tmp_path / "a", base="Qwen/Qwen3-0.6B")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["task_type"] == "CAUSAL_LM"
    assert (config["r"], config["lora_alpha"]) == (3, 2.5)
    assert config["base_model_name_or_path"] == "Qwen/Qwen3-0.6B"
    assert config["target_modules"] == sorted(name.rpartition(".")[2] for name in SHAPES)
    assert (config["bias"], config["fan_in_fan_out"], config["use_rslora"]) == ("none", False, False)
    expected = {}
    for layer in range(CONFIG.layers):
        for name, (inputs, outputs) in SHAPES.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            expected |= {f"{module}.lora_A.weight": (3, inputs), f"{module}.lora_B.weight": (outputs, 3)}
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {name: x.shape for name, x in tensors.items()} == expected
    assert {x.dtype for x in tensors.values()} == {np.dtype("float32")}
    with safe_open(tmp_path / "a" / "adapter_model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("devices", [1, 8])
def test_base_plus_scaled_product_of_the_files_is_the_merged_checkpoint(tmp_path, devices):
    """Every tensor of the base and of the merged model as `save` would store it, with what the files say between."""
    params, adapters = random_params(CONFIG), random_adapters(CONFIG, LORA)
    merged = merge(params, adapters, LORA)
    if devices == 8:
        mesh, axes = make_mesh(fsdp=4, tensor=2), lora_axes(CONFIG, LORA)
        adapters = {
            t: {n: jax.device_put(x, sharding(mesh, CONFIG.rules, *axes[t][n])) for n, x in f.items()}
            for t, f in adapters.items()
        }
    save_adapter(adapters, CONFIG, LORA, FAMILY, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    adapted = 0
    for leaf in make_leaves(CONFIG, FAMILY.names(CONFIG)):
        for position, name in leaf.tensors():
            before, after = (leaf.to_stored(np.asarray(get(tree, leaf.path)[position])) for tree in (params, merged))
            module = "base_model.model." + name.removesuffix(".weight")
            if f"{module}.lora_A.weight" in tensors:
                product = tensors.pop(f"{module}.lora_B.weight") @ tensors.pop(f"{module}.lora_A.weight")
                np.testing.assert_allclose(before + 2.5 / 3 * product, after, atol=1e-6)
                assert np.abs(after - before).max() > 0.05
                adapted += 1
            else:
                np.testing.assert_array_equal(after, before)
    assert adapted == 7 * CONFIG.layers
    assert not tensors


@pytest.mark.parametrize(
    ("base", "name", "revision"),
    [
        ("owner/model@v1", "owner/model", "v1"),
        ("owner/model", "owner/model", None),
        ("/models/a@b", "/models/a@b", None),
        (None, None, None),
    ],
)
def test_a_revision_of_the_hub_is_said_apart_from_its_repository(tmp_path, base, name, revision):
    save_adapter(random_adapters(CONFIG, LORA), CONFIG, LORA, FAMILY, tmp_path / "a", base=base)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (name, revision)


def test_only_what_is_adapted_is_written_in_the_dtype_asked_for(tmp_path):
    lora = Lora(rank=1, alpha=4.0, targets=("v", "q"))
    save_adapter(random_adapters(CONFIG, lora), CONFIG, lora, FAMILY, tmp_path / "a", dtype="bfloat16")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert type(config["lora_alpha"]) is int
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * CONFIG.layers
    assert {str(x.dtype) for x in tensors.values()} == {"bfloat16"}


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    adapters, family, out = random_adapters(CONFIG, LORA), FAMILY, tmp_path / "a"
    with pytest.raises(FileExistsError, match="full exists and is not an empty directory"):
        save_adapter(adapters, CONFIG, LORA, family, tmp_path / "full")
    with pytest.raises(ValueError, match="dtype: 'int8'; expected one of float32"):
        save_adapter(adapters, CONFIG, LORA, family, out, dtype="int8")
    broken = {**adapters, "down": {**adapters["down"], "a": adapters["down"]["a"].at[1].set(np.inf)}}
    with pytest.raises(ValueError, match=r"layers.1.mlp.down_proj.lora_A.weight holds values that are not finite"):
        save_adapter(broken, CONFIG, LORA, family, out)
    experts = tiny_config(experts=3, experts_per_token=2, qk_norm=True)
    with pytest.raises(ValueError, match=r"^lora.targets: gate, up, down of experts, .* merge the adapters"):
        save_adapter(random_adapters(experts, LORA), experts, LORA, FAMILIES["qwen3_moe"], out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    attention = Lora(rank=3, alpha=1.0, targets=("q", "out"))
    save_adapter(random_adapters(experts, attention), experts, attention, FAMILIES["qwen3_moe"], out)
    assert len(load_file(out / "adapter_model.safetensors")) == 2 * 2 * experts.layers

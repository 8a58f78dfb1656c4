"""Adapters in PEFT itself, where it is installed: it reads what is written, and its model has the same logits."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import Lora, attach, head, hidden_states, unpacked
from grpo_jax.models.adapters import TARGETS
from grpo_jax.models.attention import soft_cap
from grpo_jax.models.weights import load, read_source
from grpo_jax.models.weights.adapter import save_adapter
from grpo_jax.types import PromptBatch
from tests.models.test_lora import random_adapters
from tests.rollout.small import merge, quick_jit

torch = pytest.importorskip("torch", reason="PyTorch is not installed; test_adapter.py reads the files without it")
peft = pytest.importorskip("peft", reason="PEFT is not installed; test_adapter.py reads the files without it")

GOLDEN = Path(__file__).parents[1] / "golden"
# PEFT 0.21 asks transformers 5 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
states = quick_jit(hidden_states, static_argnums=0)


@pytest.mark.parametrize(
    ("name", "alpha", "targets"),
    [
        ("qwen3", 2.5, tuple(TARGETS)),
        ("qwen3", 5.0, ("v", "down")),
        ("llama_linear_bias", 1.0, tuple(TARGETS)),
        ("gemma2", 2.5, tuple(TARGETS)),
        ("qwen3_moe", 5.0, ("q", "k", "v", "out")),
    ],
    ids=["qwen3", "two targets", "llama", "gemma2", "attention of experts"],
)
def test_logits_in_peft_are_those_of_the_adapters_and_of_the_merged_model(name, alpha, targets, tmp_path):
    """Whole and broken alphas, none of them the rank: a scale that is lost or inverted shows."""
    from transformers import AutoModelForCausalLM

    source, lora = read_source(GOLDEN / name), Lora(rank=3, alpha=alpha, targets=targets)
    config, params = source.config, load(source.directory, source.config, source.names)
    adapters = random_adapters(config, lora)
    save_adapter(adapters, config, lora, source.family, tmp_path / "a")
    tokens = np.random.default_rng(0).integers(3, config.vocab, (2, 24))
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype="float32", attn_implementation="eager").eval()
        before = base(torch.tensor(tokens)).logits.numpy()[:, 8:-1]
        model = peft.PeftModel.from_pretrained(base, tmp_path / "a")
        theirs = model(torch.tensor(tokens)).logits.numpy()[:, 8:-1]
    prompt = PromptBatch(tokens=tokens[:, :9], mask=np.ones((2, 9), bool))
    for ours in (attach(params, adapters, lora), merge(params, adapters, lora)):
        hidden = states(config, ours, unpacked(prompt, jnp.asarray(tokens[:, None, 9:])))
        logits = soft_cap(hidden @ head(config, ours), config.final_cap)
        np.testing.assert_allclose(logits[:, 0], theirs, atol=1e-4)
    assert np.abs(theirs - before).max() > 0.1


def test_peft_finds_the_base_by_its_name(tmp_path):
    source, lora = read_source(GOLDEN / "qwen3"), Lora(rank=3, alpha=2.0)
    adapters = random_adapters(source.config, lora)
    save_adapter(adapters, source.config, lora, source.family, tmp_path / "a", base=str(source.directory))
    model = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a")
    weights, key = model.state_dict(), "base_model.model.model.layers.1.mlp.up_proj.lora_A.default.weight"
    np.testing.assert_array_equal(weights[key].numpy(), adapters["up"]["a"][1].T)
    assert model.get_model_status().base_model_type == "Qwen3ForCausalLM"

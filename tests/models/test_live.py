"""Every family beside transformers' own model, computed now and not from golden files, where PyTorch is installed."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import head, hidden_states, unpacked
from grpo_jax.models.attention import soft_cap
from grpo_jax.models.weights import load, read_source
from grpo_jax.types import PromptBatch

torch = pytest.importorskip("torch", reason="PyTorch is not installed; the golden files stand for it")
GOLDEN = sorted(path.parent for path in (Path(__file__).parent / "golden").glob("*/config.json"))


@pytest.mark.parametrize("directory", GOLDEN, ids=lambda path: path.name)
def test_logits_are_those_of_transformers(directory):
    from transformers import AutoModelForCausalLM

    source = read_source(directory)
    params = load(source.directory, source.config, source.names)
    tokens = np.random.default_rng(0).integers(3, 48, (2, 24))
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
        theirs = model(torch.tensor(tokens)).logits.numpy()
    prompt = PromptBatch(tokens=tokens[:, :9], mask=np.ones((2, 9), bool))
    hidden = hidden_states(source.config, params, unpacked(prompt, jnp.asarray(tokens[:, None, 9:])))
    ours = soft_cap(hidden @ head(source.config, params), source.config.final_cap)
    np.testing.assert_allclose(ours[:, 0], theirs[:, 8:-1], atol=1e-4)

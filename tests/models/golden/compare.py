"""How far this library is from transformers on a golden file."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.core import token_logprobs
from grpo_jax.models import head, hidden_states
from grpo_jax.models.families import FAMILIES
from grpo_jax.models.weights.layout import get, make_leaves
from grpo_jax.models.weights.read import load
from grpo_jax.rollout import Sampler, generate, publish, sample_keys
from grpo_jax.types import PromptBatch
from tests.rollout.small import quick_jit

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Figures:
    """The largest differences from transformers' model."""

    logit: float
    logp: float
    gradient: float
    """Relative to the largest entry of the tensor's gradient; the worst tensor counts."""
    worst: str
    """That tensor's name."""
    greedy: float
    """Share of the greedy tokens that are the same."""


@functools.cache
def model(name):
    """The family, the configuration and the parameters of a variant."""
    raw = json.loads((HERE / name / "config.json").read_text())
    family = FAMILIES[raw["model_type"]]
    config = family.read(raw)
    return family, config, load(HERE / name, config, family.names(config))


@functools.cache
def golden(name):
    """The arrays of a golden file."""
    with np.load(HERE / name / "golden.npz") as file:
        return dict(file)


def prompts(name):
    """The prompts of a golden file."""
    file = golden(name)
    return PromptBatch(tokens=jnp.asarray(file["prompt"], jnp.int32), mask=jnp.asarray(file["prompt_mask"]))


@functools.partial(quick_jit, static_argnums=0)
def scored(config, params, prompt, tokens, mask):
    """Logits, log-probs and the gradient of the masked mean of the latter."""

    def mean(params):
        hidden = hidden_states(config, params, prompt, tokens)
        logp = token_logprobs(hidden, head(params), tokens, soft_cap=config.final_cap).logp
        logits = hidden @ head(params)
        if config.final_cap is not None:
            logits = config.final_cap * jnp.tanh(logits / config.final_cap)
        return logp.mean(where=mask), (logits, logp)

    gradient, (logits, logp) = jax.grad(mean, has_aux=True)(params)
    return logits, logp, gradient


@functools.partial(quick_jit, static_argnums=0, static_argnames="length")
def continued(config, params, prompt, length):
    """The most likely tokens after each prompt, one completion of each."""
    keys = sample_keys(0, 0, jnp.arange(prompt.tokens.shape[0]), 1)
    sampler = Sampler(temperature=0)
    return generate(config, publish(config, params), prompt, keys, length=length, eos_ids=(), sampler=sampler).tokens


@functools.cache
def figures(name):
    """The differences on a golden file."""
    family, config, params = model(name)
    file, prompt = golden(name), prompts(name)
    mask = file["mask"]
    logits, logp, gradient = scored(config, params, prompt, jnp.asarray(file["tokens"], jnp.int32), mask)
    errors = {}
    for leaf in make_leaves(config, family.names(config)):
        for position, tensor in leaf.tensors():
            expected = file[f"gradient/{tensor}"]
            got = leaf.to_stored(np.asarray(get(gradient, leaf.path)[position]))
            assert got.shape == expected.shape, tensor
            errors[tensor] = float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-6))
    assert errors.keys() == {key.removeprefix("gradient/") for key in file if key.startswith("gradient/")}
    worst = max(errors, key=errors.get)
    tokens = continued(config, params, prompt, length=file["greedy"].shape[-1])[:, 0]
    return Figures(
        logit=float(np.abs(logits - file["logits"])[mask].max()),
        logp=float(np.abs(logp - file["logp"])[mask].max()),
        gradient=errors[worst],
        worst=worst,
        greedy=float((np.asarray(tokens) == file["greedy"]).mean()),
    )

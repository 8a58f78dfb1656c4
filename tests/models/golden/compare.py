"""How far this library is from transformers on a golden file."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.core import token_logprobs
from grpo_jax.models import head, hidden_states, unpacked
from grpo_jax.models.attention import soft_cap
from grpo_jax.models.families import FAMILIES
from grpo_jax.models.weights.layout import get, make_leaves
from grpo_jax.models.weights.read import load
from grpo_jax.rollout import Sampler, publish, sample, sample_keys
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


def described(name):
    """The family and the configuration of a variant."""
    raw = json.loads((HERE / name / "config.json").read_text())
    family = FAMILIES[raw["model_type"]]
    return family, family.read(raw)


@functools.cache
def model(name):
    """The family, the configuration and the parameters of a variant."""
    family, config = described(name)
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
def logits(config, params, prompt, tokens):
    """The logits that predict each token."""
    return soft_cap(hidden_states(config, params, unpacked(prompt, tokens)) @ head(config, params), config.final_cap)


@functools.partial(quick_jit, static_argnums=0)
def scored(config, params, prompt, tokens, mask):
    """The gradient of the masked mean of the log-probs, and the log-probs."""

    def mean(params):
        hidden = hidden_states(config, params, unpacked(prompt, tokens))
        logp = token_logprobs(hidden, head(config, params), tokens, soft_cap=config.final_cap).logp
        return logp.mean(where=mask), logp

    return jax.grad(mean, has_aux=True)(params)


@functools.partial(quick_jit, static_argnums=0, static_argnames="length")
def continued(config, params, prompt, length):
    """The most likely tokens after each prompt, one completion of each."""
    keys = sample_keys(0, 0, jnp.arange(prompt.tokens.shape[0]), 1)
    sampler = Sampler(temperature=0)
    return sample(config, publish(config, params), prompt, keys, max_tokens=length, eos_ids=(), sampler=sampler).tokens


def logit_difference(name, **change):
    """The largest difference of the logits, with the configuration changed."""
    _, config, params = model(name)
    file, tokens = golden(name), jnp.asarray(golden(name)["tokens"], jnp.int32)
    got = logits(dataclasses.replace(config, **change), params, prompts(name), tokens)
    return float(np.abs(got - file["logits"])[file["mask"]].max())


@functools.cache
def figures(name):
    """The differences on a golden file."""
    family, config, params = model(name)
    file, prompt = golden(name), prompts(name)
    mask = file["mask"]
    gradient, logp = scored(config, params, prompt, jnp.asarray(file["tokens"], jnp.int32), mask)
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
        logit=logit_difference(name),
        logp=float(np.abs(logp - file["logp"])[mask].max()),
        gradient=errors[worst],
        worst=worst,
        greedy=float((np.asarray(tokens) == file["greedy"]).mean()),
    )

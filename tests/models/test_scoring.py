"""What a model says of given tokens, at its own temperature and with its own soft cap, against the float64 decoder."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core import kl_divergence
from grpo_jax.models import text_logits, token_scores, unpacked
from grpo_jax.testing.decoder import log_softmax, plain_logits
from grpo_jax.testing.tiny import tiny_config, tiny_prompts
from tests.rollout.small import quick_jit, random_params

CAPPED = tiny_config(
    local=(False, True), window=3, final_cap=1.5, zero_centred=True, post_norms=True, scaled_embed=True, temperature=0.7
)
CONFIGS = {"capped": CAPPED, "experts": tiny_config(experts=4, experts_per_token=2, tied=False, temperature=1.3)}
PROMPT = tiny_prompts()
TOKENS = jax.random.randint(jax.random.key(9), (4, 2, 5), 0, 23)
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)

scores = quick_jit(token_scores, static_argnums=0, static_argnames=("entropy", "divergence"))
logits_of = quick_jit(text_logits, static_argnums=0)


def plain(config, params, text):
    """The logits behind every token of a text; the plain decoder has the soft cap and no temperature."""
    return plain_logits(config, params, text) / config.temperature


@functools.cache
def plain_logp(config, seed=0):
    """log pi of the whole vocabulary at every completion token, in float64."""
    out = np.zeros((*TOKENS.shape, config.vocab))
    for p, g in np.ndindex(*TOKENS.shape[:2]):
        text = np.asarray(PROMPT.tokens[p])[np.asarray(PROMPT.mask[p])].tolist()
        both = text + TOKENS[p, g].tolist()
        out[p, g] = log_softmax(plain(config, random_params(config, seed), both))[len(text) - 1 : -1]
    return out


@configs
@pytest.mark.parametrize("pad", [0, 11])
def test_logits_of_texts_are_those_of_the_plain_decoder_whatever_the_padding(config, pad):
    params, lengths = random_params(config), (6, 1, 4)
    texts = [np.random.default_rng(n).integers(0, 23, n).tolist() for n in lengths]
    tokens = jnp.array([text + [pad] * (6 - len(text)) for text in texts])
    got = logits_of(config, params, tokens)
    assert (got.shape, got.dtype) == ((3, 6, 23), jnp.float32)
    for row, text in zip(got, texts, strict=True):
        np.testing.assert_allclose(row[: len(text)], plain(config, params, text), atol=3e-5)


@configs
def test_scores_are_those_of_the_plain_decoder(config):
    got = scores(config, random_params(config), unpacked(PROMPT, TOKENS), entropy=True)
    logp_V = plain_logp(config)
    np.testing.assert_allclose(got.logp, np.take_along_axis(logp_V, TOKENS[..., None], -1)[..., 0], atol=3e-5)
    np.testing.assert_allclose(got.entropy, -(np.exp(logp_V) * logp_V).sum(-1), atol=3e-5)
    assert got.divergence is None


@configs
def test_scores_have_the_divergence_over_the_whole_vocabulary_from_given_weights(config):
    params, reference = random_params(config), random_params(config, 1)
    got = scores(config, params, unpacked(PROMPT, TOKENS), reference=reference, divergence=kl_divergence)
    logp_V, ref_logp_V = plain_logp(config), plain_logp(config, 1)
    expected = (np.exp(logp_V) * (logp_V - ref_logp_V)).sum(-1)
    assert expected.max() > 0.05
    np.testing.assert_allclose(got.divergence, expected, atol=5e-5)


def test_the_reference_is_a_constant():
    config, params = CAPPED, random_params(CAPPED)

    def total(params, reference):
        return token_scores(
            config, params, unpacked(PROMPT, TOKENS), reference=reference, divergence=kl_divergence
        ).divergence.sum()

    here, there = quick_jit(jax.grad(total, argnums=(0, 1)))(params, random_params(config, 1))
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(here)) > 1e-3
    assert not any(jax.tree.leaves(jax.tree.map(lambda g: bool(g.any()), there)))


def test_no_more_logits_are_alive_than_the_model_says():
    """Seven completion positions with a chunk of 2 are projected two at a time, and the numbers stay."""
    config = dataclasses.replace(CAPPED, vocab=29)  # a size that no other axis has
    params, tokens = random_params(config), jnp.zeros((4, 2, 7), jnp.int32)

    def alive(chunk):
        trace = jax.make_jaxpr(token_scores, static_argnums=0)(
            dataclasses.replace(config, logprob_chunk=chunk), params, unpacked(PROMPT, tokens)
        )
        return {int(n) for n in re.findall(r"f32\[4,2,(\d),29\]", str(trace))}

    assert alive(2) == {2}
    assert alive(16) == {7}
    one, other = (
        scores(dataclasses.replace(config, logprob_chunk=n), params, unpacked(PROMPT, tokens)) for n in (2, 16)
    )
    chex.assert_trees_all_close(one, other, atol=1e-6)

"""The decoding loop: one compiled program from prompts to completions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from grpo_jax.mesh.rules import constrain
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Params, decode, empty_cache, last_token, prefill
from grpo_jax.rollout.sampler import Sampler
from grpo_jax.types import PromptBatch, Rollout


def sample(
    config: DecoderConfig,
    published: Params,
    prompt: PromptBatch,
    keys: Key[Array, "P G"],
    *,
    max_tokens: int,
    eos_ids: tuple[int, ...],
    sampler: Sampler | None = None,
    check_every: int = 8,
) -> Rollout:
    """Returns completions of every prompt, with the mask and log-probability of each token drawn.

    The prompts are computed once; each completion owns a cache that the loop updates in place. Whether all
    completions have ended is tested every `check_every` tokens: on a GPU each test waits for the host.

    Args:
      published: weights in the rollout layout (`publish`).
      keys: one per completion (`sample_keys`); token t uses `fold_in(key, t)`.
      max_tokens: tokens drawn at most, T.
      eos_ids: tokens that end a completion; none means that all run to `max_tokens`.
      sampler: how a token is drawn. None draws from the whole distribution at the model's temperature, which is the
        one that is scored: what training needs.
      check_every: K, tokens between two tests for the end.
    """
    P, G = keys.shape
    sampler = Sampler(temperature=config.temperature) if sampler is None else sampler
    # The last round may run past `max_tokens`: those tokens are dropped, and their cache writes stay within it.
    steps = -(-max_tokens // check_every) * check_every
    segments = prefill(config, published, prompt)
    uniform = jax.vmap(lambda t: _uniform(keys, t))(jnp.arange(steps))
    ends, start = jnp.asarray(eos_ids, jnp.int32), jnp.zeros((P, G), jnp.int32)

    def step(t: jax.Array, carry: tuple) -> tuple:
        token, done, cache, tokens, logps, drawn = carry
        logits, cache = decode(config, published, prompt, segments, cache, token, t, start)
        token, logp = sampler(logits, uniform[t])
        live = ~done
        token, logp = jnp.where(live, token, 0), jnp.where(live, logp, 0.0)
        done = done | (token[..., None] == ends).any(-1) if eos_ids else done
        return token, done, cache, tokens.at[t].set(token), logps.at[t].set(logp), drawn.at[t].set(live)

    def several(state: tuple) -> tuple:
        t, carry = state
        return t + check_every, jax.lax.fori_loop(0, check_every, lambda i, c: step(t + i, c), carry)

    grid = ("prompt", "sample")
    carry = (
        constrain(config.rules, jnp.broadcast_to(last_token(prompt)[:, None], (P, G)), *grid),
        constrain(config.rules, jnp.zeros((P, G), bool), *grid),
        empty_cache(config, P, G, max_tokens),
        constrain(config.rules, jnp.zeros((steps, P, G), jnp.int32), None, *grid),
        constrain(config.rules, jnp.zeros((steps, P, G), jnp.float32), None, *grid),
        constrain(config.rules, jnp.zeros((steps, P, G), bool), None, *grid),
    )

    def running(state: tuple) -> jax.Array:
        return (state[0] < steps) & ~state[1][1].all()

    _, (_, _, _, tokens, logps, drawn) = jax.lax.while_loop(running, several, (0, carry))
    tokens, logps, drawn = (jnp.moveaxis(x[:max_tokens], 0, -1) for x in (tokens, logps, drawn))
    ended = ((tokens[..., None] == ends).any(-1) & drawn).any(-1) if eos_ids else jnp.zeros((P, G), bool)
    return Rollout(tokens=tokens, mask=drawn, logp=logps, ended=ended)


def _uniform(keys: Key[Array, "P G"], t: jax.Array) -> jax.Array:
    """Returns one number in [0, 1) per completion, for its token t."""

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, t))

    return jax.vmap(jax.vmap(draw))(keys)

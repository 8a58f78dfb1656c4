"""What a model says of given tokens: temperature and soft cap are the model's own, so that nobody can forget them."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grpo_jax.core.kl.full_vocabulary import Divergence
from grpo_jax.core.logprobs import TokenLogprobs, token_logits, token_logprobs
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Params, head, hidden_states
from grpo_jax.models.rows import Rows, unpacked
from grpo_jax.types import PromptBatch


def token_scores(
    config: DecoderConfig,
    params: Params,
    rows: Rows,
    *,
    entropy: bool = False,
    reference: Params | None = None,
    divergence: Divergence | None = None,
) -> TokenLogprobs:
    """Returns the log-probs `[P, G, U]` of rows, with the full-vocabulary divergence from `reference` if it is given.

    Gradient: to `params`, in reverse mode. The reference is a constant.
    """
    hidden = hidden_states(config, params, rows)
    against = None
    if reference is not None:
        against = (hidden_states(config, reference, rows), head(config, reference))
    return token_logprobs(
        hidden,
        head(config, params),
        rows.tokens,
        temperature=config.temperature,
        chunk=config.logprob_chunk,
        soft_cap=config.final_cap,
        entropy=entropy,
        reference=against,
        divergence=divergence,
    )


def text_logits(config: DecoderConfig, params: Params, tokens: Int[Array, "B N"]) -> Float[Array, "B N V"]:
    """Returns the float32 logits behind each token of texts: those at t say how token t + 1 is drawn.

    Texts are right-padded: attention is causal, so that what is behind a text does not reach it.

    Gradient: to `params`.
    """
    first = PromptBatch(tokens=tokens[:, :1], mask=jnp.ones_like(tokens[:, :1], bool))
    # As a prompt of one token and a completion; the last of its inputs predicts a token that nobody has.
    rest = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))
    hidden = hidden_states(config, params, unpacked(first, rest[:, None]))[:, 0]
    return token_logits(hidden, head(config, params), temperature=config.temperature, soft_cap=config.final_cap)

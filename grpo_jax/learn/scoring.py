"""Log-probs of completions under any weights, one micro-batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Int

from grpo_jax.core.kl.full_vocabulary import Divergence
from grpo_jax.core.logprobs import TokenLogprobs
from grpo_jax.learn.microbatch import join, split
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Params
from grpo_jax.models.scoring import token_scores
from grpo_jax.types import PromptBatch


def score(
    model: DecoderConfig,
    params: Params,
    prompt: PromptBatch,
    tokens: Int[Array, "P G T"],
    *,
    micro_prompts: int | None = None,
    entropy: bool = False,
    reference: Params | None = None,
    divergence: Divergence | None = None,
) -> TokenLogprobs:
    """Returns the log-probs `[P, G, T]` of completions under `params`, at the model's temperature and soft cap.

    Gradient: to `params`, in reverse mode.

    Args:
      micro_prompts: prompts whose activations are alive at once; it divides P. None takes all.
      entropy: whether to compute the entropy of each token too.
      reference: weights of another policy, for its full-vocabulary divergence from this one.
      divergence: which one, such as `kl_divergence`.

    Raises:
      ValueError: only one of `reference` and `divergence` is given.
    """

    def part(batch: tuple[PromptBatch, jax.Array]) -> TokenLogprobs:
        return token_scores(model, params, *batch, entropy=entropy, reference=reference, divergence=divergence)

    return map_prompts(part, (prompt, tokens), micro_prompts)


def map_prompts(function: Callable[..., Any], batch: tuple[PromptBatch, jax.Array], micro_prompts: int | None) -> Any:
    """Returns `function` of prompts and completions, computed `micro_prompts` prompts at a time."""
    prompts = batch[1].shape[0]
    parts = prompts // (micro_prompts or prompts)
    if parts == 1:
        return function(batch)
    return join(jax.lax.map(function, split(batch, parts)))

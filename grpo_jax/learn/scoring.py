"""Log-probs of completions under any weights, one micro-batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from grpo_jax.core.kl.full_vocabulary import Divergence
from grpo_jax.core.logprobs import TokenLogprobs
from grpo_jax.learn.layout import Cells, Layout, fold, padded, rows, scatter
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Params
from grpo_jax.models.rows import Rows
from grpo_jax.models.scoring import token_scores
from grpo_jax.types import PromptBatch


def score(
    model: DecoderConfig,
    params: Params,
    prompt: PromptBatch,
    tokens: Int[Array, "P G T"],
    *,
    layout: Layout | None = None,
    micro_prompts: int | None = None,
    entropy: bool = False,
    reference: Params | None = None,
    divergence: Divergence | None = None,
) -> TokenLogprobs:
    """Returns the log-probs `[P, G, T]` of completions under `params`, at the model's temperature and soft cap.

    Gradient: to `params`, in reverse mode, unless the number of micro-batches of a layout is known at run time only.

    Args:
      layout: the tokens that are computed (`pack`), and in which micro-batches; the others get 0. None computes all.
      micro_prompts: without a layout, prompts whose activations are alive at once; it divides P. None takes all.
      entropy: whether to compute the entropy of each token too.
      reference: weights of another policy, for its full-vocabulary divergence from this one.
      divergence: which one, such as `kl_divergence`.

    Raises:
      ValueError: only one of `reference` and `divergence` is given.
    """

    def part(rows: Rows) -> TokenLogprobs:
        return token_scores(model, params, rows, entropy=entropy, reference=reference, divergence=divergence)

    return by_rows(part, prompt, tokens, layout or padded_layout(prompt, tokens, micro_prompts))


def padded_layout(prompt: PromptBatch, tokens: Int[Array, "P G T"], micro_prompts: int | None) -> Layout:
    """Returns the layout that computes every position of a batch."""
    P, G, T = tokens.shape
    return padded(P, G, prompt.tokens.shape[-1], T, micro_prompts=micro_prompts)


def by_rows(function: Callable[[Rows], Any], prompt: PromptBatch, tokens: Int[Array, "P G T"], layout: Layout) -> Any:
    """Returns what `function` says of every token of rows, as `[P, G, T, ...]`, and 0 of tokens that are not computed.

    Args:
      function: from rows to a tree of arrays `[D, G, U, ...]`, a micro-batch at a time.
    """
    size = layout.size

    def of(cells: Cells) -> Any:
        return function(rows(size, cells, prompt, tokens))

    def add(out: Any, cells: Cells) -> Any:
        return jax.tree.map(lambda old, new: scatter(size, cells, old, new), out, of(cells))

    shapes = jax.eval_shape(of, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), layout.cells))
    return fold(layout, add, jax.tree.map(lambda x: jnp.zeros(tokens.shape + x.shape[3:], x.dtype), shapes))

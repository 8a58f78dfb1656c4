"""Host side: prompts, their tokens and their order. Nothing here imports JAX."""

from grpo_jax.data.dataset import Dataset, read_jsonl
from grpo_jax.data.hf_tokenizer import HfTokenizer
from grpo_jax.data.limit import within_limit
from grpo_jax.data.order import batch_indices
from grpo_jax.data.prompts import encode_completions, encode_prompts
from grpo_jax.data.source import Source
from grpo_jax.data.tokenizer import PRINTABLE, CharTokenizer, Tokenizer

__all__ = [
    "PRINTABLE",
    "CharTokenizer",
    "Dataset",
    "HfTokenizer",
    "Source",
    "Tokenizer",
    "batch_indices",
    "encode_completions",
    "encode_prompts",
    "read_jsonl",
    "within_limit",
]

"""Host side: prompts, their tokens and their order. Nothing here imports JAX."""

from grpo_jax.data.dataset import Dataset, read_jsonl
from grpo_jax.data.order import batch_indices
from grpo_jax.data.prompts import encode_completions, encode_prompts
from grpo_jax.data.tokenizer import PRINTABLE, CharTokenizer

__all__ = [
    "PRINTABLE",
    "CharTokenizer",
    "Dataset",
    "batch_indices",
    "encode_completions",
    "encode_prompts",
    "read_jsonl",
]

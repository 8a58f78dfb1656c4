"""Language models: a configuration, a plain tree of parameters, and pure functions of both."""

from grpo_jax.models.adapters import fold
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import decode, empty_cache, head, hidden_states, init, logical_axes, prefill, rounded
from grpo_jax.models.lora import Adapters, Lora, attach, init_lora, lora_axes, merge

__all__ = [
    "Adapters",
    "DecoderConfig",
    "Lora",
    "attach",
    "decode",
    "empty_cache",
    "fold",
    "head",
    "hidden_states",
    "init",
    "init_lora",
    "logical_axes",
    "lora_axes",
    "merge",
    "prefill",
    "rounded",
]

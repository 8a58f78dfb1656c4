"""Language models: a configuration, a plain tree of parameters, and pure functions of both."""

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import decode, empty_cache, head, hidden_states, init, logical_axes, prefill

__all__ = [
    "DecoderConfig",
    "decode",
    "empty_cache",
    "head",
    "hidden_states",
    "init",
    "logical_axes",
    "prefill",
]

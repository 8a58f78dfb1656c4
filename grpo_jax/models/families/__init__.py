"""Families of models, by the `model_type` of their config.json. A family is one short file."""

from grpo_jax.models.families import gemma2, gemma3, llama, mistral, qwen2, qwen3, qwen3_moe
from grpo_jax.models.families.family import Family

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY for module in (qwen2, qwen3, llama, mistral, gemma2, gemma3, qwen3_moe)
}

__all__ = ["FAMILIES", "Family"]

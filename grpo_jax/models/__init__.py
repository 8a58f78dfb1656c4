"""Language models: a configuration, a plain tree of parameters, and pure functions of both."""

from grpo_jax.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "grpo_jax.models.adapters": ("merge_adapters",),
        "grpo_jax.models.config": ("DecoderConfig",),
        "grpo_jax.models.decoder": (
            "Params",
            "cast_params",
            "decode",
            "empty_cache",
            "head",
            "hidden_states",
            "init",
            "logical_axes",
            "prefill",
            "weight_kinds",
        ),
        "grpo_jax.models.lora": ("Adapters", "attach", "init_lora", "lora_axes"),
        "grpo_jax.models.rows": ("Packing", "Rows", "unpacked"),
        "grpo_jax.models.scoring": ("text_logits", "token_scores"),
        "grpo_jax.models.settings": ("Lora", "ModelSettings", "decoder_config"),
        "grpo_jax.models.weights.model": ("load_model", "open_model"),
    },
)

"""The tiny models that are compared with transformers: one per family, and one per feature that a family may have.

Fields are those of config.json. Windows and caps are small, so that they change every number.
"""

SHAPE = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

VARIANTS = {
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1e6},
    "qwen2_window": {
        "model_type": "qwen2",
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    "qwen2_yarn": {
        "model_type": "qwen2",
        "head_dim": 8,
        "rope_theta": 1e3,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 2.0},
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 8, "rope_theta": 1e6},
    "llama": {"model_type": "llama", "num_key_value_heads": 4},
    "llama_linear_bias": {
        "model_type": "llama",
        "attention_bias": True,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    },
    "llama3": {
        "model_type": "llama",
        "head_dim": 8,
        "rope_theta": 1e3,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "mistral": {"model_type": "mistral", "head_dim": 8, "sliding_window": 6},
    "gemma2": {
        "model_type": "gemma2",
        "num_hidden_layers": 3,
        "head_dim": 8,
        "query_pre_attn_scalar": 6,
        "sliding_window": 6,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 4,
        "head_dim": 8,
        "query_pre_attn_scalar": 6,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "head_dim": 8,
        "moe_intermediate_size": 8,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
    },
}

STATEMENTS = {
    "qwen2": "biases on queries, keys and values; tied",
    "qwen2_window": "global layers below, local ones above",
    "qwen2_yarn": "yarn",
    "qwen3": "norms on queries and keys",
    "llama": "Llama 2",
    "llama_linear_bias": "linear scaling, biases on all of attention",
    "llama3": "Llama 3.1's scaling",
    "mistral": "every layer local",
    "gemma2": "soft caps, alternating layers, four norms",
    "gemma3": "two rotary bases, linear scaling on the global one",
    "qwen3_moe": "two of six experts, weights normalised",
}
"""What each one is there to show."""

"""Published models by their config.json: every one of them is read, and read as what it is."""

import dataclasses

import pytest

from grpo_jax.models import DecoderConfig
from grpo_jax.models.families import FAMILIES
from grpo_jax.models.rope_scaling import Linear, Llama3, Yarn
from tests.models import published as p


def shape(vocab, hidden, layers, heads, kv_heads, head_width, mlp, **others):
    names = ("vocab", "hidden", "layers", "heads", "kv_heads", "head_width", "mlp")
    return dict(zip(names, (vocab, hidden, layers, heads, kv_heads, head_width, mlp), strict=True)) | others


QWEN_15B = shape(151936, 1536, 28, 12, 2, 128, 8960, qkv_bias=True, rope_theta=1e4)
QWEN3_MOE = shape(
    151936, 2048, 48, 32, 4, 128, 768, tied=False, qk_norm=True, experts=128, experts_per_token=8,
    normalised_routing=True,
)  # fmt: skip
LLAMA2 = shape(32000, 4096, 32, 32, 32, 128, 11008, tied=False, norm_eps=1e-5)
LLAMA31 = shape(
    128256, 4096, 32, 32, 8, 128, 14336, tied=False, norm_eps=1e-5, rope_theta=5e5,
    rope_scaling=Llama3(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original=8192),
)  # fmt: skip
LLAMA32_1B = shape(
    128256, 2048, 16, 32, 8, 64, 8192, norm_eps=1e-5, rope_theta=5e5,
    rope_scaling=Llama3(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original=8192),
)  # fmt: skip
MISTRAL = shape(32000, 4096, 32, 32, 8, 128, 14336, tied=False, norm_eps=1e-5)
GEMMA = {"zero_centred": True, "post_norms": True, "scaled_embed": True, "activation": "gelu_tanh"}
GEMMA2 = {**GEMMA, "window": 4096, "query_scalar": 256.0, "attention_cap": 50.0, "final_cap": 30.0}
GEMMA3 = {**GEMMA, "window": 512, "query_scalar": 256.0, "qk_norm": True, "rope_theta": 1e6, "local_rope_theta": 1e4}
FIVE = (True,) * 5 + (False,)

MODELS = {
    "Qwen2.5-0.5B": (p.QWEN_05B, shape(151936, 896, 24, 14, 2, 64, 4864, qkv_bias=True, rope_theta=1e6)),
    "Qwen2.5-0.5B-Instruct": (
        {**p.QWEN_05B, "eos_token_id": 151645, "max_window_layers": 21},
        shape(151936, 896, 24, 14, 2, 64, 4864, qkv_bias=True, rope_theta=1e6),
    ),
    "Qwen2.5-Math-1.5B": (p.QWEN_MATH, QWEN_15B),
    "DeepSeek-R1-Distill-Qwen-1.5B": (
        {**p.QWEN_MATH, "max_position_embeddings": 131072, "tie_word_embeddings": False},
        {**QWEN_15B, "tied": False},
    ),
    "Qwen2.5-7B with YaRN": (
        p.QWEN_7B_YARN,
        shape(
            152064, 3584, 28, 28, 4, 128, 18944, tied=False, qkv_bias=True, rope_theta=1e6,
            # 0.1 ln(4) + 1
            rope_scaling=Yarn(
                factor=4.0, original=32768, attention_factor=1.138629436111989, beta_fast=32.0, beta_slow=1.0
            ),
        ),
    ),
    "Qwen3-0.6B": (p.QWEN3, shape(151936, 1024, 28, 16, 8, 128, 3072, qk_norm=True, rope_theta=1e6)),
    "Qwen3-0.6B, every field written": (
        p.FULL_DUMP,
        shape(151936, 1024, 28, 16, 8, 128, 3072, qk_norm=True, rope_theta=1e6),
    ),
    "Qwen3-30B-A3B": (p.QWEN3_MOE, {**QWEN3_MOE, "rope_theta": 1e6}),
    "Qwen3-Coder-30B-A3B": (p.QWEN3_CODER, {**QWEN3_MOE, "rope_theta": 1e7}),
    "Llama-2-7b": (p.LLAMA2, LLAMA2),
    "vicuna-7b-v1.3": (p.VICUNA, {**LLAMA2, "norm_eps": 1e-6}),
    "TinyLlama-1.1B": (p.TINY_LLAMA, shape(32000, 2048, 22, 32, 4, 64, 5632, tied=False, norm_eps=1e-5)),
    "SmolLM2-135M-Instruct": (p.SMOL, shape(49152, 576, 30, 9, 3, 64, 1536, norm_eps=1e-5, rope_theta=1e5)),
    "Llama-3.1-8B": (p.LLAMA31, LLAMA31),
    "DeepSeek-R1-Distill-Llama-8B": ({**p.LLAMA31, "eos_token_id": 128001}, LLAMA31),
    "Llama-3.2-1B-Instruct": (p.LLAMA32_1B, LLAMA32_1B),
    "unsloth/Llama-3.2-1B": (p.UNSLOTH, LLAMA32_1B),
    "Mistral-7B-v0.1": (p.MISTRAL, {**MISTRAL, "window": 4096, "local": (True,) * 32}),
    "Mistral-7B-v0.3": (p.MISTRAL3, {**MISTRAL, "vocab": 32768, "rope_theta": 1e6}),
    "Mistral-Nemo": (p.NEMO, {**MISTRAL, "vocab": 131072, "hidden": 5120, "layers": 40, "rope_theta": 1e6}),
    "gemma-2-2b": (p.GEMMA2, shape(256000, 2304, 26, 8, 4, 256, 9216, **GEMMA2, local=(True, False) * 13)),
    "gemma-2-9b-it": (p.GEMMA2_9B, shape(256000, 3584, 42, 16, 8, 256, 14336, **GEMMA2, local=(True, False) * 21)),
    "gemma-2-27b-it": (
        p.GEMMA2_27B,
        shape(256000, 4608, 46, 32, 16, 128, 36864, **{**GEMMA2, "query_scalar": 144.0}, local=(True, False) * 23),
    ),
    "gemma-3-1b-it": (p.GEMMA3, shape(262144, 1152, 26, 4, 1, 256, 6912, **GEMMA3, local=FIVE * 4 + (True, True))),
    "gemma-3-270m": (p.GEMMA3_270M, shape(262144, 640, 18, 4, 1, 256, 2048, **GEMMA3, local=FIVE * 3)),
    "gemma-3-4b, its text model": (
        p.GEMMA3_4B_TEXT,
        shape(
            262208, 2560, 34, 8, 4, 256, 10240, **{**GEMMA3, "window": 1024}, local=FIVE * 5 + (True,) * 4,
            rope_scaling=Linear(factor=8.0),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_published_model_is_read_as_what_it_is(name):
    raw, expected = MODELS[name]
    family = FAMILIES[raw["model_type"]]
    assert raw["architectures"] == [family.architecture]
    config = family.read(raw)
    assert dataclasses.asdict(config) == dataclasses.asdict(DecoderConfig(**expected))
    assert family.read(family.write(config)) == config


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({**p.GEMMA2_9B, "sliding_window_size": 8192}, "sliding_window_size is 8192, .* 4096"),
        ({**p.QWEN3_CODER, "qkv_bias": True}, "qkv_bias is True"),
        ({**p.QWEN3_CODER, "use_qk_norm": False}, "use_qk_norm is False"),
        ({**p.QWEN3_CODER, "shared_expert_intermediate_size": 512}, "shared_expert_intermediate_size is 512"),
    ],
)
def test_a_field_that_is_known_by_one_value_is_refused_with_another(raw, message):
    with pytest.raises(ValueError, match=message):
        FAMILIES[raw["model_type"]].read(raw)

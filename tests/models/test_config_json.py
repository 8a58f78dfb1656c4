"""config.json: both of its styles, there and back, and what is refused."""

import dataclasses
import json
import math

import pytest

from grpo_jax.mesh import Rules
from grpo_jax.models.families import FAMILIES
from grpo_jax.models.rope_scaling import Linear, Llama3, Yarn
from tests.models.golden.compare import HERE
from tests.models.golden.variants import SHAPE, VARIANTS

QWEN = {**SHAPE, "model_type": "qwen2", "tie_word_embeddings": True}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SCALINGS = [
    ({"rope_type": "default"}, None),
    ({"type": "linear", "factor": 4}, Linear(factor=4.0)),
    ({"rope_type": "llama3", **LLAMA3}, Llama3(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original=8192)),
    # 0.1 ln(e) + 1, and the length of texts that stands beside
    ({"type": "yarn", "factor": 2.718281828459045}, Yarn(factor=2.718281828459045, original=64, attention_factor=1.1)),
    (
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "attention_factor": 1.5},
        Yarn(factor=2.0, original=32, attention_factor=1.5),
    ),
    (
        {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 16, "truncate": False},
        Yarn(factor=2.0, original=64, attention_factor=1.0, beta_fast=16.0, truncate=False),
    ),
]


def read(raw, family=None):
    return FAMILIES[family or raw["model_type"]].read(raw)


def saved(name):
    """The config.json that transformers wrote for a variant."""
    return json.loads((HERE / name / "config.json").read_text())


@pytest.mark.parametrize("name", VARIANTS)
def test_both_styles_say_the_same(name):
    """What transformers saved has the newer style, what it was made from the older one."""
    old = {**SHAPE, **VARIANTS[name]}
    assert "rope_parameters" in saved(name)
    assert "rope_parameters" not in old
    if old["model_type"].startswith("gemma"):
        old["tie_word_embeddings"] = True
    assert read(old) == read(saved(name))


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_written_is_read_again_in_either_style(name):
    config = dataclasses.replace(read(saved(name)), dtype="bfloat16", remat="layer")
    family = FAMILIES[saved(name)["model_type"]]
    written = family.write(config)
    assert json.loads(json.dumps(written)) == written
    assert dataclasses.replace(family.read(written), dtype="bfloat16", remat="layer") == config
    base = {"rope_theta", "rope_scaling", "rope_local_base_freq"}
    for style in (base, {"rope_parameters"}):
        part = {key: value for key, value in written.items() if key not in style}
        assert family.read(part) == family.read(written)


@pytest.mark.parametrize(("raw", "scaling"), SCALINGS)
def test_rotary_scalings_are_read_in_both_styles(raw, scaling):
    theta = {"rope_theta": 5e5}
    for fields in ({"rope_scaling": raw, **theta}, {"rope_parameters": {**raw, **theta}}):
        config = read({**QWEN, **fields})
        assert (config.rope_theta, config.rope_scaling) == (5e5, scaling)
        assert read(FAMILIES["qwen2"].write(config), "qwen2") == config


@pytest.mark.parametrize(
    ("kinds", "period"),
    [
        ("SSSSSFSSSSSFSS", 6),
        ("SSFSSFS", 3),
        ("FFF", 1),
        ("SSS", 4),
        ("SF", 2),
        ("SSFS", 3),
        ("FSF", None),
        ("SSFF", None),
    ],
)
def test_a_regular_pattern_is_written_for_readers_from_before_layer_types(kinds, period):
    names = {"S": "sliding_attention", "F": "full_attention"}
    shape = {**SHAPE, "num_hidden_layers": len(kinds), "layer_types": [names[kind] for kind in kinds]}
    config = read(shape, "gemma3_text")
    written = FAMILIES["gemma3_text"].write(config)
    assert written.get("sliding_window_pattern") == period
    if period is not None:
        assert read({**written, "layer_types": None}, "gemma3_text") == config


def test_a_model_without_local_layers_has_no_base_of_theirs():
    """The field is written, since readers want it, and stands for nothing."""
    config = read({**SHAPE, "model_type": "gemma3_text", "layer_types": ["full_attention"] * 2})
    assert (config.local, config.local_rope_theta) == ((), None)
    assert FAMILIES["gemma3_text"].write(config)["rope_local_base_freq"] == 1e4
    assert read(FAMILIES["gemma3_text"].write(config), "gemma3_text") == config


def test_defaults_are_those_of_the_family():
    llama = read({**SHAPE, "model_type": "llama"} | {"num_key_value_heads": None})
    assert (llama.kv_heads, llama.head_width, llama.tied, llama.rope_theta) == (4, 4, False, 10_000.0)
    assert read({**QWEN, "model_type": "qwen3"}).head_width == 128
    gemma = read({**SHAPE, "model_type": "gemma2"})
    assert (gemma.tied, gemma.head_width, gemma.query_scalar) == (True, 256, 256.0)
    assert (gemma.attention_cap, gemma.final_cap, gemma.window) == (50.0, 30.0, 4096)
    gemma = read({**SHAPE, "model_type": "gemma3_text", "num_hidden_layers": 7})
    assert gemma.local == (True,) * 5 + (False, True)
    assert (gemma.rope_theta, gemma.local_rope_theta) == (1e6, 1e4)


@pytest.mark.parametrize(
    ("change", "local"),
    [
        ({"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0}, ()),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, (False, True)),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 28}, ()),
        (
            {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
            (True, False),
        ),
    ],
)
def test_which_layers_of_qwen_are_local(change, local):
    config = read({**QWEN, **change})
    assert (config.local, config.window) == (local, 8 if local else None)


def test_fields_that_change_nothing_are_passed_over():
    """Those that published checkpoints of these families hold beside what decides the numbers."""
    others = {
        "_name_or_path": "x",
        "attention_dropout": 0.1,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 106],
        "is_llama_config": True,
        "pretraining_tp": 2,
        "rope_interleaved": False,
        "torch_dtype": "bfloat16",
        "use_mrope": False,
    }
    assert read({**QWEN, **others}) == read(QWEN)


REFUSED = [
    ("qwen2", {"use_mrope": True}, "use_mrope is True"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved is True"),
    ("qwen2", {"hidden_act": "relu"}, "hidden_act is 'relu', which changes the numbers"),
    ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    ("mistral", {"attention_bias": True}, "attention_bias is True"),
    ("llama", {"mlp_bias": True}, "mlp_bias is True"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is not known here and may change"),
    (
        "llama",
        {"embedding_multiplier": 2, "residual_multiplier": 3},
        "embedding_multiplier, residual_multiplier is not",
    ),
    ("llama", {"auto_map": {}}, "auto_map is not known here"),
    ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "mlp_only_layers": [0]}, r"mlp_only_layers is \[0\]"),
    ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
    ("qwen3_moe", {"moe_intermediate_size": 8}, "num_experts is missing"),
    ("qwen2", {"hidden_size": None}, "hidden_size is missing"),
    ("qwen2", {"vocab_size": "48"}, "vocab_size is '48'; expected an integer above 0"),
    ("qwen2", {"hidden_size": 18}, "hidden_size is 18, no multiple of num_attention_heads 4"),
    ("qwen2", {"layer_types": ["chunked_attention"] * 2}, "layer_types holds 'chunked_attention'"),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 2 layers"),
    (
        "qwen2",
        {"layer_types": ["sliding_attention"] * 2},
        "layer_types has local layers, but there is no sliding_window",
    ),
    ("qwen2", {"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, "rope_scaling.rope_type is 'dynamic'"),
    ("qwen2", {"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters.rope_type is 'longrope'"),
    ("qwen2", {"rope_scaling": {"type": "mrope"}}, "rope_scaling.rope_type is 'mrope'"),
    ("qwen2", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing|rope_parameters.factor is missing"),
    ("qwen2", {"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor is missing; rope_type 'llama3'"),
    (
        "qwen2",
        {"rope_scaling": {"rope_type": "default", "mrope_section": [1]}},
        "mrope_section is no field of rope_type",
    ),
    ("qwen2", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor is 0.5"),
    (
        "qwen2",
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}},
        "rope_theta has two values, 10000.0 and 1000000",
    ),
    ("qwen2", {"rope_theta": -1}, "rope_theta is -1; expected a number above 1"),
    (
        "qwen2",
        {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}},
        r"rope_scaling says Linear\(factor=2.0\), but rope_parameters says None",
    ),
    (
        "gemma3_text",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2}}},
        "rope_parameters.sliding_attention is .* scaling is supported on full_attention alone",
    ),
    ("gemma3_text", {"rope_parameters": {"rope_theta": 1e6}}, "rope_parameters.rope_theta is not supported"),
]

LINEAR = {"type": "linear", "factor": 2}
MALFORMED = [
    ("qwen2", {"rope_scaling": "linear"}, "rope_scaling is 'linear'; expected a mapping or null"),
    ("qwen2", {"rope_parameters": "default"}, "rope_parameters is 'default'; expected a mapping or null"),
    ("gemma3_text", {"rope_parameters": [1]}, r"rope_parameters is \[1\]; expected a mapping"),
    (
        "gemma3_text",
        {"rope_parameters": {"full_attention": 3}},
        "rope_parameters.full_attention is 3; expected a mapping or null",
    ),
    ("qwen2", {"rope_scaling": {"rope_type": []}}, r"rope_scaling.rope_type is \[\], which is not supported"),
    ("qwen2", {"rope_scaling": {**LINEAR, "factor": -1}}, "rope_scaling.factor is -1; expected a number above 0"),
    ("qwen2", {"rope_scaling": {**LINEAR, "factor": 0}}, "rope_scaling.factor is 0; expected a number above 0"),
    ("qwen2", {"rope_scaling": {**LINEAR, "factor": math.nan}}, "rope_scaling.factor is nan; expected a number"),
    ("qwen2", {"rope_scaling": {**LINEAR, "factor": "2"}}, "rope_scaling.factor is '2'; expected a number"),
    ("qwen2", {"rope_scaling": {**LINEAR, "rope_theta": None}}, "rope_scaling.rope_theta is None; expected a number"),
    (
        "qwen2",
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": "x"}},
        "rope_scaling.original_max_position_embeddings is 'x'; expected an integer above 0",
    ),
    (
        "qwen2",
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1}},
        r"rope_scaling.high_freq_factor is 1.0; expected a number above low_freq_factor \(1.0\)",
    ),
    ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 2, "truncate": "no"}}, "rope_scaling.truncate is 'no'; exp"),
    ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 2, "mscale": "1"}}, "rope_scaling.mscale is '1'; expected"),
    ("qwen2", {"rope_theta": math.inf}, "rope_theta is inf; expected a number above 1"),
    ("qwen2", {"rope_theta": None}, "rope_theta is None; expected a number above 1"),
    ("gemma3_text", {"rope_local_base_freq": -1}, "rope_local_base_freq is -1; expected a number above 1"),
    ("llama", {"max_position_embeddings": "4k"}, "max_position_embeddings is '4k'; expected an integer above 0"),
    ("qwen2", {"max_position_embeddings": None}, "max_position_embeddings is None; expected an integer above 0"),
    ("mistral", {"sliding_window": "x"}, "sliding_window is 'x'; expected an integer above 0"),
    ("mistral", {"sliding_window": 1.5}, "sliding_window is 1.5; expected an integer above 0"),
    ("qwen2", {"layer_types": 3}, "layer_types is 3; expected a list of sliding_attention and full_attention, or null"),
    ("qwen2", {"layer_types": [["full_attention"]] * 2}, "layer_types is .* expected a list of"),
    ("gemma3_text", {"sliding_window_pattern": None}, "sliding_window_pattern is None; expected an integer above 0"),
    ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern is 0; expected an integer above 0"),
    ("llama", {"attention_bias": "false"}, "attention_bias is 'false'; expected true or false"),
    ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; expected true or false"),
    ("gemma2", {"tie_word_embeddings": None}, "tie_word_embeddings is None; expected true or false"),
    ("qwen3_moe", {"num_experts": 2, "num_experts_per_tok": 1, "norm_topk_prob": 1}, "norm_topk_prob is 1; expected"),
    ("qwen2", {"use_sliding_window": "no"}, "use_sliding_window is 'no'; expected true or false"),
    ("qwen2", {"max_window_layers": -1}, "max_window_layers is -1; expected an integer above -1"),
    ("gemma2", {"attn_logit_softcapping": -1}, "attn_logit_softcapping is -1; expected a number above 0"),
    ("gemma2", {"attn_logit_softcapping": "x"}, "attn_logit_softcapping is 'x'; expected a number above 0"),
    ("gemma2", {"final_logit_softcapping": 0}, "final_logit_softcapping is 0; expected a number above 0"),
    ("gemma3_text", {"final_logit_softcapping": []}, r"final_logit_softcapping is \[\]; expected a number above 0"),
]


@pytest.mark.parametrize(("family", "change", "message"), REFUSED + MALFORMED)
def test_what_would_change_the_numbers_is_refused_by_name(family, change, message):
    raw = {**SHAPE, "moe_intermediate_size": 8, **change} if family == "qwen3_moe" else {**SHAPE, **change}
    with pytest.raises(ValueError, match=rf"^config\.json of a '{family}' model: .*({message})"):
        read(raw, family)


@pytest.mark.parametrize("name", VARIANTS)
def test_how_a_model_is_computed_scored_and_laid_out_is_not_written(name):
    """A run at another temperature or with other rules exports the model that it has trained."""
    config, family = read(saved(name)), FAMILIES[saved(name)["model_type"]]
    how = {"temperature": 0.7, "logprob_chunk": 3, "rules": Rules(mlp=None), "dtype": "bfloat16", "remat": "layer"}
    changed = dataclasses.replace(config, **how, unroll=2)
    assert family.write(changed) == family.write(config)


@pytest.mark.parametrize(
    ("family", "change", "lost"),
    [
        ("qwen2", {"qk_norm": True}, "qk_norm=True"),
        ("llama", {"local": (True, False), "window": 4}, r"local=\(True, False\), window=4"),
        ("mistral", {"final_cap": 30.0}, "final_cap=30.0"),
        ("gemma2", {"attention_cap": None, "activation": "silu"}, "activation='silu'"),
    ],
)
def test_a_family_does_not_write_what_it_cannot_say(family, change, lost):
    config = dataclasses.replace(read({**SHAPE, "model_type": family}), **change)
    with pytest.raises(
        ValueError, match=rf"^config\.json of '{family}' cannot say {lost}; choose the family that has it"
    ):
        FAMILIES[family].write(config)

"""Every field of a good config.json, at every depth, with values of wrong types in its place."""

import copy
import json
import math

import pytest

from grpo_jax.models.weights import read_source
from tests.models import published as p

YARN = {
    "attention_factor": 1.1,
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 4.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 32768,
    "rope_type": "yarn",
    "truncate": True,
}
TWO_ROPES = {
    "full_attention": {"factor": 8.0, "rope_theta": 1e6, "rope_type": "linear"},
    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
}
GOOD = [
    {**p.QWEN_05B, "use_sliding_window": True, "max_window_layers": 20, "layer_types": None},
    {**p.QWEN3, "layer_types": ["full_attention"] * 28, "rope_scaling": YARN},
    {**p.QWEN3, "rope_parameters": {**YARN, "rope_theta": 1e6}},
    {**p.QWEN3_CODER, "layer_types": None, "num_local_experts": 128},
    p.LLAMA31,
    {**p.MISTRAL, "head_dim": 128, "attention_bias": False},
    p.GEMMA2_27B,
    {**p.GEMMA3, "tie_word_embeddings": True, "use_bidirectional_attention": None},
    {**p.GEMMA3, "layer_types": ["sliding_attention"] * 26, "rope_parameters": TWO_ROPES},
]
VALUES = [None, "x", "false", -1, 0, 1.5, [], {}, [[]], True, False, math.nan, math.inf]
NUMBERS = """
    rms_norm_eps rope_theta rope_local_base_freq query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping
    factor low_freq_factor high_freq_factor attention_factor beta_fast beta_slow
"""
FLAGS = "tie_word_embeddings attention_bias norm_topk_prob use_sliding_window truncate"
RIGHT = {
    **{name: [1.5] for name in NUMBERS.split()},
    **{name: [True, False] for name in FLAGS.split()},
    # What null stands for: as many as there are query heads, no cap, no window, the whole distance.
    "num_key_value_heads": [None],
    "head_dim": [None],
    "attn_logit_softcapping": [None, 1.5],
    "final_logit_softcapping": [None, 1.5],
    "sliding_window": [None],
    "max_window_layers": [0],
    "layer_types": [None],
    "rope_scaling": [None, {}],
    "rope_parameters": [None, {}],
    "full_attention": [None, {}],
    "attention_factor": [None, 1.5],
    "mscale": [None, 0, False, 1.5],
    "mscale_all_dim": [None, 0, False, 1.5],
}
"""Values that say something else than the good file does, and say it properly."""


def paths(raw, before=()):
    """The way to every field, and to every field of a mapping in it that is read."""
    for name, value in raw.items():
        yield (*before, name)
        if isinstance(value, dict) and (before or name.startswith("rope")):
            yield from paths(value, (*before, name))


def replaced(raw, path, value):
    changed = copy.deepcopy(raw)
    *way, last = path
    place = changed
    for name in way:
        place = place[name]
    place[last] = value
    return changed


def read(directory, raw):
    (directory / "config.json").write_text(json.dumps(raw))
    return read_source(directory).config


CASES = [(raw, path) for raw in GOOD for path in paths(raw)]


@pytest.mark.parametrize(("raw", "path"), CASES, ids=[f"{raw['model_type']}-{'.'.join(path)}" for raw, path in CASES])
def test_a_field_of_a_wrong_type_is_named_or_changes_nothing(tmp_path, raw, path):
    good = read(tmp_path, raw)
    right = [repr(value) for value in RIGHT.get(path[-1], [])]
    for value in VALUES:
        if repr(value) in right:
            continue
        try:
            config = read(tmp_path, replaced(raw, path, value))
        except ValueError as error:
            message = str(error)
            assert message.startswith(str(tmp_path / "config.json")), value
            assert path[-1] in message, (value, message)
        else:
            assert repr(config) == repr(good), value

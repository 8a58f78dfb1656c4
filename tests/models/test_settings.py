"""The sections of a model as settings, and the decoder that they describe."""

import dataclasses
import importlib
import pkgutil
import subprocess
import sys

import pytest

from grpo_jax.mesh import Rules
from grpo_jax.models import DecoderConfig, Lora, ModelSettings, decoder_config

SHAPE = {"hidden": 24, "layers": 3, "heads": 4, "kv_heads": 2, "mlp": 40}


def test_a_new_model_has_what_its_settings_say():
    given = ModelSettings(
        **SHAPE,
        head_width=8,
        tied=False,
        qkv_bias=True,
        qk_norm=True,
        rope_theta=500.0,
        norm_eps=1e-5,
        dtype="bfloat16",
        remat="dots",
        unroll=3,
        logprob_chunk=5,
        attention_block=7,
    )
    got = decoder_config(given, vocab=17, temperature=0.7, rules=Rules(mlp=None))
    shared = {field.name for field in dataclasses.fields(given)} - {"path"}
    assert {name: getattr(got, name) for name in shared} == {name: getattr(given, name) for name in shared}
    assert (got.vocab, got.temperature, got.rules) == (17, 0.7, Rules(mlp=None))


def test_what_the_settings_leave_open_is_the_decoders_default():
    got = decoder_config(ModelSettings(**SHAPE), vocab=17)
    assert got == DecoderConfig(**SHAPE, vocab=17, head_width=6)
    assert got.dtype == "float32"


def test_every_setting_of_a_model_is_a_field_of_the_decoder():
    """But for the path: a field that the decoder lacks would change nothing, and nobody would notice."""
    fields = {field.name for field in dataclasses.fields(DecoderConfig)}
    assert {field.name for field in dataclasses.fields(ModelSettings)} - fields == {"path"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 3}, "width"),
        ({"hidden": 0}, "greater than or equal to 1"),
        ({"remat": "some"}, "'none', 'dots' or 'layer'"),
        ({"dtype": "float16"}, "'float32' or 'bfloat16'"),
        ({"logprob_chunk": 0}, "greater than or equal to 1"),
        ({"attention_block": 0}, "greater than or equal to 1"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelSettings(**{**SHAPE, **changes})


def test_adapters_are_scaled_by_alpha_over_rank():
    assert Lora(rank=8, alpha=4).scale == 0.5
    assert Lora().rank is None


@pytest.mark.parametrize("package", ["mesh", "models", "rollout"])
def test_settings_are_read_without_jax(package):
    """The packages export their names when they are first used: a configuration is checked before JAX starts."""
    code = (
        f"import sys, grpo_jax.{package}.settings; "
        "assert 'jax' not in sys.modules; "
        f"import grpo_jax.{package} as p; assert set(p.__all__) <= set(dir(p)); "
        "[getattr(p, name) for name in p.__all__]; assert 'jax' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", ["mesh", "models", "models.weights", "rollout"])
def test_no_exported_name_is_that_of_a_module_which_would_hide_it(package):
    found = importlib.import_module(f"grpo_jax.{package}")
    assert not set(found.__all__) & {module.name for module in pkgutil.iter_modules(found.__path__)}
    for name in found.__all__:
        assert getattr(found, name) is not None

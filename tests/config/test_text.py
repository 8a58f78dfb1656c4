"""The YAML dialect: 1.2, one document, no key twice."""

import math

import pytest

from grpo_jax.config.text import parse, write
from grpo_jax.errors import ConfigError


@pytest.mark.parametrize("text", ["1e-6", "1.e-6", "1E-6", "1.0e-6", "0.000001", "+1e-6"])
def test_every_way_to_write_a_float_is_a_float(text):
    value = parse(text, "x")
    assert isinstance(value, float)
    assert value == 1e-6


@pytest.mark.parametrize("text", ["off", "on", "yes", "no", "y", "n", "Off", "1:30", "my_package.my_module:my_kl"])
def test_words_that_older_yaml_converts_are_text(text):
    assert parse(text, "x") == text


@pytest.mark.parametrize(("text", "value"), [("true", True), ("null", None), ("~", None), ("", None), ("010", 10)])
def test_scalars(text, value):
    assert parse(text, "x") == value
    assert type(parse(text, "x")) is type(value)


def test_a_name_with_a_colon_stands_in_a_flow_mapping():
    assert parse("{kl: a.b:c, kl_coef: 1e-2}", "x") == {"kl": "a.b:c", "kl_coef": 0.01}


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("a: 1\nb: 2\na: 3", r'f\.yaml: not valid YAML at line 3, column 1: found duplicate key "a"'),
        ("a: {b: 1, b: 1}", 'duplicate key "b"'),
        ("a: [1", "not valid YAML at line 1"),
        ("a: 1\n---\nb: 2", "another document|expected a single document"),
        ("a: !!python/name:os.system x", "not valid YAML"),
        ("a: \x00", r"f\.yaml: not valid YAML"),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_place(text, fragment):
    with pytest.raises(ConfigError, match=fragment) as error:
        parse(text, "f.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "value",
    [
        *(1e-6, 1e-8, 0.1 + 0.2, 1e22, 5e-324, -0.0, math.inf, 1.0, 3, True, None),
        *("off", "1e-6", ".e5", "null", "true", "", "010", "2026-01-01", "a: b", "=", "- x", "two  blanks\nlines "),
        *("x" * 300 + " " + "y" * 300, {"z": 1, "a": {}}, [], [1, [2.5]]),
    ],
)
def test_what_is_written_is_read_back_with_its_type(value):
    back = parse(write({"key": value}), "x")["key"]
    assert back == value
    assert type(back) is type(value)


def test_keys_keep_their_order():
    assert list(parse(write({"z": 1, "a": 2}), "x")) == ["z", "a"]

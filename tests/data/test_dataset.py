"""Datasets and their files: contents, fingerprints and messages that name the file."""

import hashlib

import pytest

from grpo_jax.data import Dataset, read_jsonl


def write(tmp_path, text):
    path = tmp_path / "data.jsonl"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_file_gives_prompts_and_columns(tmp_path):
    path = write(
        tmp_path, '{"prompt": "p\u2028é", "answer": 1, "level": null}\n\n{"answer": [2], "prompt": "q", "level": 3}'
    )
    data = read_jsonl(path)
    assert len(data) == 2
    assert data.prompts([1, 0, 1]) == ["q", "p\u2028é", "q"]
    assert data.columns([1, 0]) == {"answer": [[2], 1], "level": [3, None]}


def test_another_column_can_hold_the_prompt(tmp_path):
    data = read_jsonl(write(tmp_path, '{"question": "p", "answer": 1}\n'), prompt="question")
    assert data.rows == ({"prompt": "p", "answer": 1},)


def test_fingerprint_depends_on_values_and_row_order_only():
    row, other = {"prompt": "p", "answer": 1}, {"prompt": "q", "answer": 2}
    data = Dataset((row, other))
    expected = b'{"answer":1,"prompt":"p"}\n{"answer":2,"prompt":"q"}\n'
    assert data.fingerprint() == hashlib.sha256(expected).hexdigest()
    assert data.fingerprint() == Dataset((dict(reversed(row.items())), other)).fingerprint()
    assert data.fingerprint() != Dataset((other, row)).fingerprint()
    assert data.fingerprint() != Dataset((row, {"prompt": "q", "answer": "2"})).fingerprint()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no dataset file .*absent\.jsonl"):
        read_jsonl(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "p"}\n{"prompt": \n', r"data\.jsonl:2 is not valid JSON"),
        (b'{"prompt": "\xff"}\n', r"data\.jsonl:1 is not valid JSON"),
        ('{"prompt": "p"}\n["p"]\n', r"data\.jsonl:2 holds a JSON list: write one object per line"),
        ('{"text": "p", "a": 1}\n', r"data\.jsonl:1 has no column 'prompt'; its columns are \['a', 'text'\]"),
        ("", r"data\.jsonl holds no rows"),
        ("\n \n", r"data\.jsonl holds no rows"),
        ('{"prompt": 5}\n', r"data\.jsonl: row 0 has a prompt of type int: give text"),
        (
            '{"prompt": "p", "a": 1}\n{"prompt": "p"}\n',
            r"data\.jsonl: row 1 has the columns \['prompt'\], but row 0 has \['a', 'prompt'\]",
        ),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_jsonl(write(tmp_path, text))


def test_two_prompt_columns_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"data\.jsonl:1 has both 'question' and 'prompt'"):
        read_jsonl(write(tmp_path, '{"question": "p", "prompt": "q"}\n'), prompt="question")


def test_rows_are_checked():
    with pytest.raises(ValueError, match=r"row 1 has no column 'prompt'; its columns are \['text'\]"):
        Dataset(({"prompt": "p"}, {"text": "q"}))

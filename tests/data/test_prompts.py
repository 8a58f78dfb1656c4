"""Texts to padded arrays: exact contents, and refusal to cut."""

import numpy as np
import pytest

from grpo_jax.data import CharTokenizer, encode_completions, encode_prompts

TOKENIZER = CharTokenizer("abc")


def test_prompts_start_with_bos_and_are_padded_on_the_right():
    tokens, mask = encode_prompts(["abc", "", "b"], TOKENIZER, length=4)
    np.testing.assert_array_equal(tokens, [[1, 3, 4, 5], [1, 0, 0, 0], [1, 4, 0, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    assert (tokens.dtype, mask.dtype) == (np.int32, np.bool_)


def test_completions_end_with_eos_inside_the_mask():
    tokens, mask = encode_completions(["abc", ""], TOKENIZER, length=4)
    np.testing.assert_array_equal(tokens, [[3, 4, 5, 2], [2, 0, 0, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 1], [1, 0, 0, 0]])


def test_no_texts_are_no_rows():
    assert encode_prompts([], TOKENIZER, length=4)[0].shape == (0, 4)


def test_nothing_is_cut():
    with pytest.raises(ValueError, match=r"row 1: the prompt has 4 tokens, but the limit is 3: set data.prompt_length"):
        encode_prompts(["a", "abc"], TOKENIZER, length=3)
    with pytest.raises(ValueError, match=r"row 0: the completion has 3 tokens, .* 2: set sampling.max_tokens .* 3"):
        encode_completions(["ab"], TOKENIZER, length=2)


def test_an_unknown_character_names_its_row():
    with pytest.raises(ValueError, match=r"row 1: character 'x' at position 1"):
        encode_prompts(["a", "bx"], TOKENIZER, length=4)

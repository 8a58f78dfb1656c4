"""The character tokenizer: exact ids, inverses, positions and messages."""

import numpy as np
import pytest

from grpo_jax.data import PRINTABLE, CharTokenizer


def test_ids_follow_the_alphabet_after_the_specials():
    tokenizer = CharTokenizer("ab+")
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (0, 1, (2,), 6)
    assert tokenizer.encode("b+a") == [4, 5, 3]


def test_decode_inverts_encode_and_specials_are_empty_but_end_nothing():
    tokenizer = CharTokenizer(PRINTABLE)
    assert tokenizer.decode(tokenizer.encode(PRINTABLE)) == PRINTABLE
    ids = np.array([1, *tokenizer.encode("x"), 2, 0, *tokenizer.encode("y")], np.int32)
    assert tokenizer.decode(ids) == "xy"


def test_printable_is_ascii_and_newline():
    assert len(PRINTABLE) == 96
    assert all(character.isprintable() or character == "\n" for character in PRINTABLE)


def test_ends_count_the_characters_through_each_token():
    tokenizer = CharTokenizer("abc")
    ids = [1, *tokenizer.encode("ab"), 0, *tokenizer.encode("c"), 2]
    ends = tokenizer.ends(ids)
    assert ends == [0, 1, 2, 2, 3, 3]
    assert ends == [len(tokenizer.decode(ids[: i + 1])) for i in range(len(ids))]


def test_equal_alphabets_are_equal_tokenizers():
    assert CharTokenizer("ab") == CharTokenizer("ab") != CharTokenizer("ba")
    assert hash(CharTokenizer("ab")) == hash(CharTokenizer("ab"))
    assert repr(CharTokenizer("ab")) == "CharTokenizer(alphabet='ab')"


def test_what_it_does_not_know_is_an_error():
    with pytest.raises(ValueError, match=r"character 'x' at position 2 is not in the alphabet 'ab'"):
        CharTokenizer("ab").encode("abxy")
    for unknown in (5, -1):
        with pytest.raises(ValueError, match=rf"id {unknown} is outside the vocabulary of 5 ids"):
            CharTokenizer("ab").decode([3, unknown])


def test_a_bad_alphabet_is_an_error():
    with pytest.raises(ValueError, match="alphabet holds 'b' more than once"):
        CharTokenizer("abcb")
    with pytest.raises(ValueError, match="alphabet is empty"):
        CharTokenizer("")

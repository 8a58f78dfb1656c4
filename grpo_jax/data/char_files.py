"""A tokenizer of characters in the files of the Hugging Face format, so that an exported model is complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


def write_char_files(alphabet: str, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json: the ids of `CharTokenizer(alphabet)`, BOS in front."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
    }
    for name, content in (("tokenizer.json", _pipeline(alphabet)), ("tokenizer_config.json", settings)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")


def _pipeline(alphabet: str) -> dict[str, Any]:
    """Returns the content of tokenizer.json: every character is a word of its own."""
    words = [PAD, BOS, EOS, *alphabet]
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    first, second = ({"Sequence": {"id": which, "type_id": 0}} for which in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": words[i], **token} for i in range(3)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, first],
            "pair": [{"SpecialToken": {"id": BOS, "type_id": 0}}, first, second],
            "special_tokens": {BOS: {"id": BOS, "ids": [1], "tokens": [BOS]}},
        },
        "decoder": {"type": "Fuse"},
        # The word for unknown ones is not among the words: a character outside the alphabet is an error there, too.
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unknown>"},
    }

"""A small byte-level BPE tokenizer in the files of a model directory, built with the `tokenizers` library."""

import functools
import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]
PAD, START, END, BOS = range(4)

TEMPLATE = """\
{% for message in messages %}
{{ '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}
<think></think>
{%- endif %}
{% endif %}"""

WORDS = ("What is one plus two? The answer is three. user assistant system",) * 4


@functools.cache
def _trained(texts):
    """The merges of the texts' words, 290 tokens at most; every byte is a token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe.to_str()


def write_tokenizer(directory, *, texts=WORDS, template=TEMPLATE, bos=False, generation=None, **settings):
    """Writes tokenizer.json and tokenizer_config.json (Qwen's layout), and generation_config.json if given.

    The merges are learnt from `texts`, a tuple.
    """
    directory.mkdir(parents=True, exist_ok=True)
    bpe = Tokenizer.from_str(_trained(texts))
    if bos:
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    bpe.save(str(directory / "tokenizer.json"))
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>" if bos else None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        **({} if template is None else {"chat_template": template}),
        **settings,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(content))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory

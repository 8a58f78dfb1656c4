"""A model's own tokenizer: ids and texts, ends, templates, and what does not fit the model."""

import json
import subprocess
import sys

import pytest
from tokenizers import Tokenizer as Backend

from grpo_jax.data import CharTokenizer, Dataset, HfTokenizer, encode_completions, encode_prompts, within_limit
from tests.data.bpe import BOS, END, PAD, TEMPLATE, write_tokenizer

TEXTS = ["What is one plus two?", "", "  two  spaces ", "é 😀 ǆ\n", "日本語 a", "plus\t<think>"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return HfTokenizer(write_tokenizer(tmp_path_factory.mktemp("qwen"), generation={"eos_token_id": [END, PAD]}))


@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, END, PAD, PAD]) == text
    assert max([0, *ids]) < tokenizer.vocab_size


def test_eos_ids_are_the_tokenizers_first_and_then_those_of_the_generation_config(tmp_path, tokenizer):
    assert tokenizer.eos_ids == (END, PAD)
    assert HfTokenizer(write_tokenizer(tmp_path / "a", generation={"eos_token_id": PAD})).eos_ids == (END, PAD)
    assert HfTokenizer(write_tokenizer(tmp_path / "b")).eos_ids == (END,)
    (tmp_path / "b" / "config.json").write_text('{"eos_token_id": [7]}')
    assert HfTokenizer(tmp_path / "b").eos_ids == (END, 7)
    (tmp_path / "b" / "generation_config.json").write_text('{"temperature": 0.6}')  # says nothing of ends
    assert HfTokenizer(tmp_path / "b").eos_ids == (END, 7)
    (tmp_path / "b" / "generation_config.json").write_text('{"eos_token_id": null}')
    assert HfTokenizer(tmp_path / "b").eos_ids == (END, 7)
    (tmp_path / "b" / "generation_config.json").write_text('{"eos_token_id": 8}')
    assert HfTokenizer(tmp_path / "b").eos_ids == (END, 8)
    assert HfTokenizer(
        write_tokenizer(tmp_path / "c", eos_token=None, generation={"eos_token_id": [9, 8]})
    ).eos_ids == (
        9,
        8,
    )


def test_padding_may_be_the_end_or_absent(tmp_path):
    """Masks tell padding: an id that is both loses nothing."""
    same = HfTokenizer(write_tokenizer(tmp_path / "same", pad_token="<|im_end|>"))
    none = HfTokenizer(write_tokenizer(tmp_path / "none", pad_token=None))
    assert same.pad_id == none.pad_id == END
    tokens, mask = encode_completions(["two", ""], same, length=6)
    assert tokens[1].tolist() == [END] * 6
    assert mask[1].tolist() == [True] + [False] * 5
    assert tokens[0][mask[0]].tolist() == [*same.encode("two"), END]


@pytest.mark.parametrize("text", TEXTS)
def test_ends_count_the_characters_through_each_token(tokenizer, text):
    """Where a prefix decodes to whole characters, its end is its length; inside a character nothing is added."""
    ids = [*tokenizer.encode(text), END]
    ends = tokenizer.ends(ids)
    assert len(ends) == len(ids)
    assert ends == sorted(ends)
    assert ends[-1] == len(text)
    for i, end in enumerate(ends):
        prefix = tokenizer.decode(ids[: i + 1])
        assert end == len(prefix) - prefix.count("\ufffd")
        assert text.startswith(prefix.rstrip("\ufffd"))


def test_ends_of_bytes_that_are_no_text_stay_within_the_text(tokenizer):
    """A sampler may draw half a character: what follows is still counted, up to the length of the whole."""
    smile = tokenizer.encode("😀")
    ids = [*smile[:2], *tokenizer.encode("two"), *smile[:-1], *smile[1:2] * 20, *tokenizer.encode(" is"), *smile[:1]]
    ends = tokenizer.ends(ids)
    assert ends == sorted(ends)
    assert ends[-1] == len(tokenizer.decode(ids))
    two = ids.index(tokenizer.encode("two")[-1])
    assert ends[two] == len(tokenizer.decode(ids[: two + 1]))
    run = ids.index(smile[1], two)  # half characters without end are counted as they come, not all at the last one
    assert ends[run + 5] < ends[run + 12] < ends[run + 19]
    assert tokenizer.ends([]) == []
    assert tokenizer.ends([END, END]) == [0, 0]


def test_a_space_at_the_start_of_a_word_is_counted_behind_a_special_token(tmp_path):
    """SentencePiece drops the first space of a text: the window in which characters are counted may not begin there."""
    from tokenizers import Tokenizer, decoders, models

    words = Tokenizer(models.WordLevel({"</s>": 0, "▁one": 1, "▁two": 2, "<unk>": 3}, unk_token="<unk>"))
    words.decoder = decoders.Metaspace()
    words.add_special_tokens(["</s>"])
    words.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = HfTokenizer(tmp_path)
    assert tokenizer.decode([1, 0, 2, 2]) == "one two two"
    assert tokenizer.ends([1, 0, 2, 2, 0]) == [3, 3, 7, 11, 11]
    assert tokenizer.ends([0, 1, 2]) == [0, 3, 7]


def test_a_text_is_taken_as_it_stands_behind_bos_where_the_tokenizer_puts_one(tmp_path, tokenizer):
    assert tokenizer.encode_prompt("one") == tokenizer.encode("one")
    with_bos = HfTokenizer(write_tokenizer(tmp_path, bos=True))
    assert with_bos.encode_prompt("one") == [BOS, *with_bos.encode("one")]
    assert with_bos.encode_prompt("") == [BOS]
    assert BOS not in with_bos.encode("one")
    tokens, mask = encode_prompts(["one", "one two"], with_bos, length=9)
    assert tokens[:, 0].tolist() == [BOS, BOS]
    assert mask.sum(1).tolist() == [1 + len(with_bos.encode("one")), 1 + len(with_bos.encode("one two"))]
    with pytest.raises(ValueError, match="row 1: the prompt has no tokens: leave the row out"):
        encode_prompts(["one", ""], tokenizer, length=9)


def test_messages_go_through_the_models_template(tokenizer):
    messages = [{"role": "user", "content": "one plus two?"}]
    expected = "<|im_start|>user\none plus two?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.prompt_text(messages) == expected
    assert tokenizer.encode_prompt(messages) == tokenizer.encode(expected)
    assert tokenizer.encode_prompt(messages)[0] == 1  # <|im_start|> is one token
    begun = [*messages, {"role": "assistant", "content": "Let me think. <think>"}]
    assert tokenizer.prompt_text(begun) == expected + "Let me think. <think>"


def test_a_special_token_in_a_users_text_is_the_special_token(tokenizer):
    """As in transformers: a row of the data can end its own turn."""
    ids = tokenizer.encode_prompt([{"role": "user", "content": "one<|im_end|>two"}])
    assert ids.count(END) == 2
    assert tokenizer.encode("one<|im_end|>two") == [*tokenizer.encode("one"), END, *tokenizer.encode("two")]


def test_the_default_one_of_several_templates_is_taken(tmp_path, tokenizer):
    """They are a list in tokenizer_config.json, or files of which the default one has the usual name."""
    message = [{"role": "user", "content": "two?"}]
    others = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": TEMPLATE}]
    listed = write_tokenizer(tmp_path / "listed", template=others)
    assert HfTokenizer(listed).prompt_text(message) == tokenizer.prompt_text(message)
    assert HfTokenizer(listed, template="model").prompt_text("two?") == tokenizer.prompt_text(message)
    filed = write_tokenizer(tmp_path / "filed", template=None)
    (filed / "chat_template.jinja").write_text(TEMPLATE)
    (filed / "additional_chat_templates").mkdir()
    (filed / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    assert HfTokenizer(filed, template="model").prompt_text("two?") == tokenizer.prompt_text(message)


def test_several_templates_without_a_default_one_are_named(tmp_path):
    others = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "rag", "template": TEMPLATE}]
    folder = write_tokenizer(tmp_path, template=others)
    expected = (
        f"{folder} has the chat templates rag, tool_use and none of them is called default: give the path of a file "
        "with the one to take"
    )
    with pytest.raises(ValueError, match=rf"^template: 'model', but {expected}, such as 'r1', or leave it out"):
        HfTokenizer(folder, template="model")
    texts = HfTokenizer(folder)
    assert texts.encode_prompt("two?") == texts.encode("two?")
    with pytest.raises(ValueError, match=f"^the prompt is a list of messages, but {expected}$"):
        texts.encode_prompt([{"role": "user", "content": "two?"}])


def test_the_models_template_alone_says_whether_bos_stands_in_front(tmp_path):
    message = [{"role": "user", "content": "two?"}]
    without = HfTokenizer(write_tokenizer(tmp_path, bos=True))
    assert without.encode_prompt(message) == without.encode(without.prompt_text(message))
    assert BOS not in without.encode_prompt(message)


def test_an_end_that_is_an_ordinary_token_has_no_text(tmp_path, tokenizer):
    full_stop = tokenizer.encode(".")
    ends = HfTokenizer(write_tokenizer(tmp_path, generation={"eos_token_id": full_stop}))
    assert ends.eos_ids == (END, *full_stop)
    assert ends.decode([*ends.encode("two"), *full_stop]) == "two"
    assert ends.ends([*ends.encode("t"), *full_stop]) == [1, 1]


def test_a_template_makes_messages_of_texts(tmp_path):
    folder = write_tokenizer(tmp_path)
    own = HfTokenizer(folder, template="model", system=" Be brief. ")
    assert own.prompt_text("two?") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\ntwo?<|im_end|>\n<|im_start|>assistant\n"
    )
    off = HfTokenizer(folder, template="model", options={"enable_thinking": False})
    assert off.prompt_text("two?").endswith("<|im_start|>assistant\n<think></think>")
    (tmp_path / "mine.jinja").write_text("Q: {{ messages[0].content }} A:")
    for template in (str(tmp_path / "mine.jinja"), "Q: {{ messages[0].content }} A:"):
        mine = HfTokenizer(folder, template=template)
        assert mine.prompt_text("two?") == "Q: two? A:"
        assert mine.encode_prompt("two?") == mine.encode("Q: two? A:")


def test_a_variable_that_the_template_does_not_read_is_refused(tmp_path):
    """A typing error would switch nothing off and say nothing."""
    folder = write_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=rf"'enable_think', but the chat template of {tmp_path} does not read it: rem"):
        HfTokenizer(folder, template="model", options={"enable_think": False})
    with pytest.raises(ValueError, match=r"'thinking', but the chat template of template='r1' does not read it"):
        HfTokenizer(folder, template="r1", options={"thinking": True})
    for name in ("messages", "add_generation_prompt", "tokenize"):
        with pytest.raises(ValueError, match=rf"template options: '{name}' follows from the prompt: remove it"):
            HfTokenizer(folder, template="model", options={name: False})
    write_tokenizer(tmp_path, template=None)
    with pytest.raises(ValueError, match=rf"template options: 'x', but the chat template of {tmp_path} is not there: "):
        HfTokenizer(folder, options={"x": 1})


DATED = "{% if not date_string is defined %}{% set date_string = strftime_now('%Y') %}{% endif %}{{ date_string }} "


def test_a_template_that_reads_the_clock_is_noted(tmp_path):
    folder = write_tokenizer(tmp_path, template=DATED + TEMPLATE)
    dated = HfTokenizer(folder, template="model")
    assert dated.note == (
        f"the chat template of {folder} writes today's date into prompts that it lays out: "
        "data.template_options.date_string fixes it"
    )
    padded = HfTokenizer(folder, vocab=dated.vocab_size + 1)
    assert padded.note.endswith(f": the other rows are padding; {dated.note}")
    fixed = HfTokenizer(folder, template="model", options={"date_string": "26 Jul 2024"})
    assert fixed.note == ""
    assert fixed.prompt_text("two?").startswith("26 Jul 2024 <|im_start|>user")
    assert HfTokenizer(folder, template="r1").note == ""  # the model's is not in use
    write_tokenizer(tmp_path, template="{{ strftime_now('%Y') }}" + TEMPLATE)
    assert HfTokenizer(folder).note.endswith("lays out, and has no variable for it: give a template without")


def test_the_layout_of_r1(tmp_path):
    tokenizer = HfTokenizer(write_tokenizer(tmp_path, template=None, bos=True), template="r1", system="Use digits.")
    text = tokenizer.prompt_text("one plus two?")
    head, tail = text.split("</answer>.")
    assert head.startswith("Use digits.\n\nA conversation between a user and an assistant. ")
    assert head.index("<think> </think>") < head.index("<answer> ")
    assert tail == "\n\nUser: one plus two?\nAssistant:"
    talk = [{"role": r, "content": c} for r, c in (("user", "one?"), ("assistant", "1"), ("user", "two?"))]
    talk_text = tokenizer.prompt_text(talk)
    assert talk_text.endswith("</answer>.\n\nUser: one?\nAssistant: 1\nUser: two?\nAssistant:")
    begun = tokenizer.prompt_text([talk[0], {"role": "assistant", "content": "<think>"}])
    assert begun.endswith("\n\nUser: one?\nAssistant: <think>")
    # The template does not write the model's BOS token; one that does gets no second one.
    assert tokenizer.encode_prompt("two?")[0] == BOS
    other = HfTokenizer(tmp_path, template="{{ bos_token }}{{ messages[0].content }}")
    assert other.encode_prompt("two?") == [BOS, *other.encode("two?")]


DROPS = "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %} go"
REFUSES = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}{{ messages[0].content }}"
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": DROPS}, r"the chat template of template=\"{% for .* leaves out the user's text 'two\?'"),
        ({"template": "{{ messages[-1].content }}", "system": "Be brief."}, "leaves out the system's text 'Be brief.'"),
        ({"template": REFUSES, "system": "Be brief."}, "fails: no system prompt"),
        ({"template": "{{ messages[0].content"}, "fails: unexpected end of template"),
        ({"system": "Be brief."}, "system: a text prompt is taken as it stands; set template to 'model'"),
        ({"options": {"enable_thinking": True}}, "template options: a text prompt is taken as it stands; set template"),
    ],
)
def test_a_template_that_loses_something_is_refused(tmp_path, options, message):
    tokenizer = HfTokenizer(write_tokenizer(tmp_path), **options)
    with pytest.raises(ValueError, match=message):
        tokenizer.encode_prompt("two?")


def test_a_models_template_that_drops_the_prompt_is_named(tmp_path):
    tokenizer = HfTokenizer(write_tokenizer(tmp_path, template=DROPS))
    with pytest.raises(ValueError, match=rf"the chat template of {tmp_path} leaves out the user's text"):
        tokenizer.encode_prompt([{"role": "user", "content": "two?"}])


def test_a_template_must_be_there(tmp_path):
    folder = write_tokenizer(tmp_path, template=None)
    with pytest.raises(ValueError, match=r"template: 'model', but .* has no chat template: give one"):
        HfTokenizer(folder, template="model")
    with pytest.raises(ValueError, match=r"template: 'r2' is neither 'model' .* one of \['r1'\], a file, nor Jinja"):
        HfTokenizer(folder, template="r2")
    with pytest.raises(ValueError, match=r"the prompt is a list of messages, but .* has no chat template"):
        HfTokenizer(folder).encode_prompt([{"role": "user", "content": "two?"}])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (7, "a prompt of type int: give text, or a list of messages"),
        ([], "a prompt of type list: give text, or a list of messages"),
        (["two?"], "a prompt whose message 0 is a str: give role and content"),
        ([{"role": "user"}], "a prompt whose message 0 has no text 'content'"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "message 0 has no text 'content'"),
    ],
)
def test_a_prompt_that_is_neither_text_nor_messages(tokenizer, prompt, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.encode_prompt(prompt)
    with pytest.raises(ValueError, match=f"row 1 has .*{message}"):
        Dataset(({"prompt": "text"}, {"prompt": prompt}))


def test_two_system_prompts_are_refused(tmp_path):
    tokenizer = HfTokenizer(write_tokenizer(tmp_path), system="Be brief.")
    with pytest.raises(ValueError, match="the messages begin with a system prompt, and another is configured"):
        tokenizer.encode_prompt([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])


def test_long_prompts_are_refused_or_left_out_and_counted(tokenizer):
    texts = ["one", "one plus two plus three", "two", "one plus two plus three plus"]
    data = Dataset(tuple({"prompt": text, "n": i} for i, text in enumerate(texts)))
    sizes = [len(tokenizer.encode(text)) for text in texts]
    limit = max(sizes[0], sizes[2])
    kept, skipped = within_limit(data, tokenizer, length=limit, too_long="skip")
    assert [row["n"] for row in kept.rows] == [0, 2]
    assert skipped == 2
    assert within_limit(data, tokenizer, length=max(sizes)) == (data, 0)
    expected = (
        rf"2 of 4 prompts have more tokens than the limit of {limit} \(row 1 is the first, with {sizes[1]}; the "
        rf"longest has {sizes[3]}\): set data\.prompt_length to {sizes[3]}, or leave the long ones out"
    )
    with pytest.raises(ValueError, match=expected):
        within_limit(data, tokenizer, length=limit)
    with pytest.raises(ValueError, match=rf"4 of 4 prompts .* set data\.prompt_length to {sizes[3]}$"):
        within_limit(data, tokenizer, length=1 if min(sizes) > 1 else 0, too_long="skip")
    with pytest.raises(ValueError, match="too_long: 'cut'; expected 'error' or 'skip'"):
        within_limit(data, tokenizer, length=limit, too_long="cut")
    with pytest.raises(ValueError, match="row 1: character '!'"):
        within_limit(Dataset(({"prompt": "a"}, {"prompt": "!"})), CharTokenizer("a"), length=9)


def test_a_model_with_more_rows_than_tokens_is_noted(tmp_path, tokenizer):
    folder = write_tokenizer(tmp_path)
    tokens = tokenizer.vocab_size
    padded = HfTokenizer(folder, vocab=tokens + 6)
    assert padded.note == (
        f"{folder / 'config.json'} has a vocabulary of {tokens + 6} for {tokens} tokens of "
        f"{folder / 'tokenizer.json'}: the other rows are padding"
    )
    assert padded.vocab_size == tokens + 6
    assert padded.decode([*padded.encode("one"), tokens, tokens + 5]) == "one"
    assert padded.ends([*padded.encode("a"), tokens]) == [1, 1]
    assert HfTokenizer(folder, vocab=tokens).note == tokenizer.note == ""


def test_a_model_with_fewer_rows_than_tokens_is_an_error_that_names_both_files(tmp_path, tokenizer):
    folder, tokens = write_tokenizer(tmp_path), tokenizer.vocab_size
    with pytest.raises(ValueError, match="the two are not of one model") as error:
        HfTokenizer(folder, vocab=tokens - 1)
    assert str(folder / "tokenizer.json") in str(error.value)
    assert f"ids up to {tokens - 1}, but {folder / 'config.json'} has a vocabulary of {tokens - 1}" in str(error.value)
    with pytest.raises(ValueError, match=r"but elsewhere/config\.json has"):
        HfTokenizer(folder, vocab=tokens - 1, config_file="elsewhere/config.json")
    write_tokenizer(tmp_path / "eos", generation={"eos_token_id": tokens + 3})
    with pytest.raises(ValueError, match=f"has ids up to {tokens + 3}, but"):
        HfTokenizer(tmp_path / "eos", vocab=tokens)


def test_an_added_token_without_a_row_is_refused_only_where_a_text_has_it(tmp_path, tokenizer):
    """Gemma 3's tokenizer has one token for images more than its text models have rows."""
    folder, tokens = write_tokenizer(tmp_path), tokenizer.vocab_size
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": tokens, "content": "<image>"})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    more = HfTokenizer(folder, vocab=tokens)
    assert f"tokenizer.json adds ids up to {tokens} to the {tokens} of " in more.note
    assert more.encode("one") == tokenizer.encode("one")
    with pytest.raises(ValueError, match=rf"the text contains the token '<image>' \(id {tokens}\), beyond"):
        more.encode("one <image>")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: (d / "tokenizer.json").write_text("{"), ValueError, "its tokenizer cannot be read"),
        (lambda d: [p.unlink() for p in d.iterdir()], FileNotFoundError, "has no tokenizer: expected tokenizer.json"),
        (lambda d: write_tokenizer(d, template=3), ValueError, "has the chat template 3: expected Jinja source"),
        (lambda d: write_tokenizer(d, eos_token=None), ValueError, "names no EOS token: set eos_token in"),
        (
            lambda d: write_tokenizer(d, generation={"eos_token_id": ["x"]}),
            ValueError,
            r"generation_config\.json has the eos_token_id 'x': expected an id",
        ),
        (
            lambda d: write_tokenizer(d, generation={"eos_token_id": [[END]]}),
            ValueError,
            r"generation_config\.json has the eos_token_id \[2\]: expected an id",
        ),
        (lambda d: (d / "generation_config.json").write_text("[]"), ValueError, "holds a JSON list"),
        (lambda d: (d / "generation_config.json").write_text("{"), ValueError, r"generation_config\.json is not valid"),
        (
            lambda d: write_tokenizer(d, auto_map={"AutoTokenizer": ["own.Own", None]}),
            ValueError,
            r"tokenizer_config\.json has 'auto_map': this tokenizer needs code of its own, which is never run",
        ),
    ],
)
def test_a_directory_that_is_no_tokenizer(tmp_path, change, error, message):
    change(write_tokenizer(tmp_path))
    with pytest.raises(error, match=message):
        HfTokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no tokenizer directory"):
        HfTokenizer(tmp_path / "absent")


def test_files_are_copied_byte_for_byte(tmp_path):
    folder = write_tokenizer(tmp_path / "a")
    (folder / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    (folder / "own.py").write_text("code")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_bytes(b"{{ tools }}\r\n")
    (folder / "additional_chat_templates" / "own.py").write_text("code")
    (tmp_path / "b").mkdir()
    HfTokenizer(folder).save(tmp_path / "b")

    def files(directory):
        found = (path for path in directory.rglob("*") if path.is_file() and path.name != "own.py")
        return {str(path.relative_to(directory)): path.read_bytes() for path in found}

    assert files(tmp_path / "b") == files(folder)
    assert not list((tmp_path / "b").rglob("own.py"))


def test_a_tokenizer_of_characters_is_written_in_files_that_give_the_same_ids(tmp_path):
    alphabet = "0123456789+-=?\n \\<é"
    chars = CharTokenizer(alphabet)
    chars.save(tmp_path)
    read = HfTokenizer(tmp_path, vocab=chars.vocab_size)
    assert (read.pad_id, read.eos_ids, read.vocab_size, read.note) == (0, (2,), chars.vocab_size, "")
    for text in ("1+2=?\n", "  ", "", alphabet):
        assert read.encode(text) == chars.encode(text)
        assert read.encode_prompt(text) == chars.encode_prompt(text)
        assert read.decode([1, *chars.encode(text), 2]) == text
    with pytest.raises(ValueError, match=rf"the tokenizer of {tmp_path} cannot encode 'x': .*Missing"):
        read.encode("x")
    with pytest.raises(ValueError, match="the prompt is a list of messages: a tokenizer of characters takes text"):
        chars.encode_prompt([{"role": "user", "content": "1"}])


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "gemma2"])
def test_the_files_own_rules_split_a_text_whatever_the_model_beside_it(tmp_path, model_type):
    """transformers' classes of these families bring rules of their own, which part a space from a digit."""
    write_tokenizer(tmp_path, texts=("1 2 3 1 2 3 1 2 3",) * 4)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    own = Backend.from_file(str(tmp_path / "tokenizer.json"))
    read = HfTokenizer(tmp_path)
    assert len(own.encode("1 2").ids) == 2
    for text in ("1 2", "a  1 2\n 3", "<|im_start|>1 2"):
        assert read.encode(text) == own.encode(text).ids


def test_nothing_is_imported_or_said_that_a_run_without_a_model_does_not_need(tmp_path):
    """transformers comes in with the first tokenizer, and does not announce that PyTorch is missing."""
    write_tokenizer(tmp_path)
    program = (
        "import sys, grpo_jax.data as d\n"
        "assert not {'transformers', 'torch', 'jinja2'} & set(sys.modules)\n"
        "sys.modules['torch'] = None\n"  # absent, wherever the test runs
        f"print(d.HfTokenizer({str(tmp_path)!r}).decode([80]))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")

"""A model's own tokenizer, read by transformers (without PyTorch), behind the interface of the library."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from grpo_jax.data.chat import MODEL, Prompt, check_prompt, conversation, find_template, render

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
"""Everything that a tokenizer is made of; an export copies these, and the named templates."""

OURS = ("messages", "add_generation_prompt", "continue_final_message", "tokenize", "chat_template")
"""What a prompt and its layout themselves say to the template."""

NAMED = "additional_chat_templates"
"""The folder of templates beside the default one, each in a file of its name."""

_CHARACTER = 4
"""Bytes of UTF-8, and so tokens, that one character takes at most."""


class HfTokenizer:
    """The tokenizer in a model directory.

    A text prompt is taken as it stands, behind the BOS token if the tokenizer puts one there; messages go through the
    model's chat template. With `template`, texts go through that one too, as a user's message. Special tokens that are
    written in a user's text become the special tokens, as in transformers.

    Args:
      directory: holds tokenizer.json (or the files of an older format) and, for more than one EOS token,
        generation_config.json.
      vocab: rows of the model's embedding; None checks nothing. Models have more rows than tokens, for alignment:
        `note` says so. The other way round is an error, except for added tokens that no ordinary text contains.
      config_file: where `vocab` is from, for messages; by default the directory's config.json.
      template: None, 'model', 'r1', a file, or Jinja source (see `chat.find_template`). Where the model has several of
        its own, 'model' is the one called default.
      system: a system prompt in front of every conversation.
      options: variables of the template, such as `{"enable_thinking": False}`; it has to mention them.

    Attributes:
      eos_ids: the tokenizer's EOS token, then the others of generation_config.json, or of config.json where the
        former names none.
      bos_id: what the tokenizer puts in front of a text, or None.
      pad_id: the padding token, or the first EOS token; masks tell padding, never this id.
      note: remarks for the run's log, about the vocabulary and about a template that reads the clock, or ''.

    Raises:
      FileNotFoundError: there is no tokenizer in the directory.
      ValueError: it needs code of its own, has no EOS token, or does not fit the model; or a wrong `template` or
        `options`.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        vocab: int | None = None,
        config_file: str | Path | None = None,
        template: str | None = None,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.template = template
        self._tokenizer = _read(self.directory)
        self._system = system
        self._options = dict(options or {})
        if template is None or template == MODEL:
            own = self._tokenizer.chat_template
            self._jinja = own.get("default") if isinstance(own, dict) else own
            if not isinstance(self._jinja, str | None):
                raise ValueError(f"{self.directory} has the chat template {self._jinja!r:.80}: expected Jinja source")
            if template == MODEL and self._jinja is None:
                raise ValueError(
                    f"template: {MODEL!r}, but {self._lacks()}, such as 'r1', or leave it out to take prompts as they "
                    "stand"
                )
        else:
            self._jinja = find_template(template)
        self._source = str(self.directory) if template in (None, MODEL) else f"template={template!r:.60}"
        self._check_options()
        self.eos_ids = _eos_ids(self.directory, self._tokenizer.eos_token_id)
        pad = self._tokenizer.pad_token_id
        self.pad_id = self.eos_ids[0] if pad is None else pad
        self._before = self._opening()
        self.bos_id = self._before[0] if self._before else None
        self._tokens = max(self._tokenizer.get_vocab().values()) + 1
        self._rows = self._tokens if vocab is None else vocab
        notes = (self._fit(Path(config_file or self.directory / "config.json")), self._clock())
        self.note = "; ".join(note for note in notes if note)

    @property
    def vocab_size(self) -> int:
        """Returns the number of ids that a model for this tokenizer has: its rows, where they are known."""
        return self._rows

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, without any in front or behind.

        Raises:
          ValueError: the text cannot be written with these tokens, or contains an added token that the model has no
            row for.
        """
        try:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        except Exception as error:  # what the library below raises has no narrower type
            raise ValueError(f"the tokenizer of {self.directory} cannot encode {text!r:.80}: {error}") from None
        if ids and max(ids) >= self._rows:
            token = self._tokenizer.convert_ids_to_tokens(max(ids))
            raise ValueError(f"the text contains the token {token!r} (id {max(ids)}), beyond the model's {self._rows}")
        return ids

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Returns the tokens of a prompt: of a text, or of messages laid out by the template.

        Raises:
          ValueError: messages without a template, a template that fails or leaves out what the user wrote, a prompt
            without tokens.
        """
        check_prompt(prompt)
        if isinstance(prompt, str) and self.template is None:
            if self._system is not None or self._options:
                given = "template options" if self._system is None else "system"
                raise ValueError(f"{given}: a text prompt is taken as it stands; set template to {MODEL!r} or another")
            ids = [*self._before, *self.encode(prompt)]
        else:
            ids = self.encode(self.prompt_text(prompt))
            # A template of the user's need not know the model's BOS token; the model's own says what it wants.
            if self.template not in (None, MODEL) and tuple(ids[: len(self._before)]) != self._before:
                ids = [*self._before, *ids]
        if not ids:
            raise ValueError("the prompt has no tokens: leave the row out")
        return ids

    def prompt_text(self, prompt: Prompt) -> str:
        """Returns the text that the template makes of a prompt."""
        if self._jinja is None:
            raise ValueError(f"the prompt is a list of messages, but {self._lacks()}")
        return render(conversation(prompt, self._system), self._apply, self._source)

    def _apply(self, messages: Any, **asked: Any) -> str:
        return self._tokenizer.apply_chat_template(
            messages, tokenize=False, chat_template=self._jinja, **asked, **self._options
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of all ids. Special tokens, EOS tokens and rows without a token have no text."""
        kept = [i for i in map(int, ids) if i not in self.eos_ids]
        return self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def ends(self, ids: Iterable[int]) -> list[int]:
        """Returns, for each token, how many characters are decoded through that token.

        A character whose bytes lie in several tokens is decoded with the last of them.
        """
        ids = [int(i) for i in ids]
        total = len(self.decode(ids))
        result: list[int] = []
        done = start = read = 0  # characters decoded; ids[start:read] stands before what is new, as its context
        for i in range(len(ids)):
            context, text = self.decode(ids[start:read]), self.decode(ids[start : i + 1])
            whole = not text.endswith("\ufffd") or i - read >= _CHARACTER
            if whole and len(text) > len(context):
                done += len(text) - len(context)
                start, read = read, i + 1
            result.append(min(done, total))
        if result:
            result[-1] = total
        return result

    def save(self, folder: Path) -> None:
        """Copies the tokenizer's files, byte for byte."""
        for name in FILES:
            if (self.directory / name).is_file():
                shutil.copyfile(self.directory / name, folder / name)
        for file in sorted((self.directory / NAMED).glob("*.jinja")):
            (folder / NAMED).mkdir(exist_ok=True)
            shutil.copyfile(file, folder / NAMED / file.name)

    def _lacks(self) -> str:
        """Returns why the model's own template cannot be taken, and what to do."""
        named = self._tokenizer.chat_template
        if named is None:
            return f"{self.directory} has no chat template: give one"
        return (
            f"{self.directory} has the chat templates {', '.join(sorted(named))} and none of them is called default: "
            "give the path of a file with the one to take"
        )

    def _reads(self, name: str) -> bool:
        """Returns whether the template mentions a word, such as a variable."""
        return self._jinja is not None and re.search(rf"\b{re.escape(name)}\b", self._jinja) is not None

    def _check_options(self) -> None:
        for name in self._options:
            if name in OURS:
                raise ValueError(f"template options: {name!r} follows from the prompt: remove it")
            if not self._reads(name):
                has = "does not read it" if self._jinja is not None else "is not there"
                raise ValueError(
                    f"template options: {name!r}, but the chat template of {self._source} {has}: remove it"
                )

    def _clock(self) -> str:
        """Returns a remark about a template that writes the date: the same prompt is another one tomorrow."""
        if not self._reads("strftime_now") or "date_string" in self._options:
            return ""
        remark = f"the chat template of {self._source} writes today's date into prompts that it lays out"
        if self._reads("date_string"):
            return f"{remark}: data.template_options.date_string fixes it"
        return f"{remark}, and has no variable for it: give a template without"

    def _opening(self) -> tuple[int, ...]:
        """Returns what the tokenizer itself puts in front of a text: BOS, or nothing."""
        bos = self._tokenizer.bos_token_id
        begun = self._tokenizer("")["input_ids"][:1]
        return (bos,) if bos is not None and begun == [bos] else ()

    def _fit(self, config_file: Path) -> str:
        named = {"pad": self.pad_id, **{f"eos {i}": i for i in self.eos_ids}, **{f"bos {i}": i for i in self._before}}
        added = set(self._tokenizer.get_added_vocab().values())
        ordinary = max(i for i in self._tokenizer.get_vocab().values() if i not in added)
        needed = max(ordinary, *named.values())
        if needed >= self._rows:
            raise ValueError(
                f"{self.directory / 'tokenizer.json'} has ids up to {needed}, but {config_file} has a vocabulary of "
                f"{self._rows}: the two are not of one model"
            )
        if self._tokens == self._rows:
            return ""
        if self._tokens < self._rows:
            return (
                f"{config_file} has a vocabulary of {self._rows} for {self._tokens} tokens of "
                f"{self.directory / 'tokenizer.json'}: the other rows are padding"
            )
        return (
            f"{self.directory / 'tokenizer.json'} adds ids up to {self._tokens - 1} to the {self._rows} of "
            f"{config_file}: a text with one of them is refused"
        )


def _read(directory: Path) -> Any:
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no tokenizer directory {directory}")
    if not any((directory / name).is_file() for name in FILES):
        raise FileNotFoundError(f"{directory} has no tokenizer: expected tokenizer.json and tokenizer_config.json")
    settings = directory / "tokenizer_config.json"
    if settings.is_file() and "auto_map" in _json(settings):
        raise ValueError(f"{settings} has 'auto_map': this tokenizer needs code of its own, which is never run")
    # transformers is slow to import, and says at import that it misses PyTorch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # tokenizer.json says all of a tokenizer. For some families AutoTokenizer takes the vocabulary alone from it, and
    # splits texts by rules of its own.
    kind = PreTrainedTokenizerFast if (directory / "tokenizer.json").is_file() else AutoTokenizer
    try:
        return kind.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises what it likes here
        raise ValueError(f"{directory}: its tokenizer cannot be read: {error}") from error


def _eos_ids(directory: Path, own: int | None) -> tuple[int, ...]:
    """Returns the ids that end a completion, the tokenizer's own first."""
    files = [directory / name for name in ("generation_config.json", "config.json")]
    named = {file: _json(file).get("eos_token_id") for file in files if file.is_file()}
    file, found = next(((file, ids) for file, ids in named.items() if ids is not None), (None, None))
    ids = found if isinstance(found, list) else [found]
    ids = [i for i in (own, *ids) if i is not None]
    if not ids:
        raise ValueError(
            f"{directory} names no EOS token: set eos_token in tokenizer_config.json or eos_token_id in "
            "generation_config.json"
        )
    if wrong := [i for i in ids if not isinstance(i, int) or isinstance(i, bool) or i < 0]:
        raise ValueError(f"{file} has the eos_token_id {wrong[0]!r}: expected an id or a list of ids")
    return tuple(dict.fromkeys(ids))


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a JSON {type(content).__name__}; expected an object")
    return content

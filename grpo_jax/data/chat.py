"""Conversations as texts: messages, the templates that lay them out, and the check that nothing was left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Message = Mapping[str, str]
"""A `role` (system, user, assistant, tool) and a text `content`."""

Prompt = str | Sequence[Message]

TEMPLATES = {
    "r1": """\
{% for message in messages if message.role == 'system' %}
{{ message.content }}

{% endfor %}
A conversation between a user and an assistant. The assistant first thinks the question through, inside \
<think> </think>, and then gives the user its answer, inside <answer> </answer>.

{% for message in messages if message.role != 'system' %}
{{ message.role | capitalize }}: {{ message.content }}
{% endfor %}
{% if add_generation_prompt %}
Assistant:
{%- endif %}"""
}
"""Templates that come with the library. `r1` is the layout of DeepSeek-R1-Zero (arXiv:2501.12948, table 1)."""

MODEL = "model"
"""The name of the template that the model brings along."""


def check_prompt(prompt: Any) -> None:
    """Returns if `prompt` is a text, or messages of which the last is there to be answered or continued.

    Raises:
      ValueError: it is something else; the message says what.
    """
    if isinstance(prompt, str):
        return
    if not isinstance(prompt, list | tuple) or not prompt:
        raise ValueError(f"a prompt of type {type(prompt).__name__}: give text, or a list of messages")
    for i, message in enumerate(prompt):
        if not isinstance(message, Mapping):
            raise ValueError(f"a prompt whose message {i} is a {type(message).__name__}: give role and content")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise ValueError(f"a prompt whose message {i} has no text {key!r}; it has {dict(message)!r:.200}")


def find_template(template: str) -> str:
    """Returns the Jinja source of a template: the library's by its name, a file's, or the source itself.

    >>> find_template("{{ messages[-1].content }}")
    '{{ messages[-1].content }}'

    Raises:
      ValueError: it is none of these.
    """
    if template in TEMPLATES:
        return TEMPLATES[template]
    if "{{" in template or "{%" in template:
        return template
    if Path(template).is_file():
        return Path(template).read_text()
    raise ValueError(
        f"template: {template!r} is neither {MODEL!r} (the model's own), one of {sorted(TEMPLATES)}, a file, nor Jinja "
        "source"
    )


def conversation(prompt: Prompt, system: str | None) -> list[dict[str, str]]:
    """Returns the messages of a prompt, behind the system prompt if there is one.

    >>> conversation("1+1?", "Be brief.")
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': '1+1?'}]

    Raises:
      ValueError: `system` is given and the messages have a system prompt of their own.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    if system is None:
        return messages
    if messages[0]["role"] == "system":
        raise ValueError("the messages begin with a system prompt, and another is configured: remove one of them")
    return [{"role": "system", "content": system}, *messages]


def render(messages: Sequence[Message], apply: Callable[..., str], source: str) -> str:
    """Returns the text that a template makes of the messages, ending where the assistant goes on.

    Where the last message is the assistant's, it is continued: the text ends with it.

    Args:
      apply: `(messages, add_generation_prompt=, continue_final_message=) -> text`.
      source: where the template is from, for messages.

    Raises:
      ValueError: the template refuses the messages, or leaves out the text of a user or of the system prompt.
    """
    from jinja2 import TemplateError

    goes_on = messages[-1]["role"] == "assistant"
    try:
        text = apply(messages, add_generation_prompt=not goes_on, continue_final_message=goes_on)
    except (TemplateError, TypeError, ValueError) as error:
        raise ValueError(f"the chat template of {source} fails: {error}") from None
    for message in messages:
        # Many templates strip; none may lose a word.
        if message["role"] in ("system", "user") and message["content"].strip() not in text:
            raise ValueError(
                f"the chat template of {source} leaves out the {message['role']}'s text "
                f"{message['content']!r:.80}: choose another template"
            )
    return text

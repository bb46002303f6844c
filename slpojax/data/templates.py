"""Messages to text: a chat template writes them, and what it writes is divided into prompt and responses.

Knows messages, Jinja templates and the tokenizer that brings one; knows no token id.
"""

import pathlib
from typing import NamedTuple

from slpojax.data.chain import Text, Transform, each
from slpojax.data.formats import Messages, Parsed, Unusable
from slpojax.data.options import Setup
from slpojax.data.tokenise import STRAY, Tokenizer

# HH's dialogue form, for tokenizers without a chat template: `data.chat_template = "dialogue"`.
DIALOGUE = (
    "{% for m in messages %}{{ '\n\nAssistant: ' if m.role == 'assistant' else '\n\nHuman: ' }}{{ m.content }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)


class Rendered(NamedTuple):
    """The texts of an example; `templated` where a chat template wrote them, special tokens included."""

    prompt: str
    responses: tuple[str, ...]
    templated: bool


def render(setup: Setup) -> Transform:
    """Write messages as text; plain text stays as it is.

    Raises:
        ValueError: `data.chat_template` names no file; later, messages without a template.
    """
    template = chat_template(setup.tokenizer, setup.encoding.chat_template)

    def one(text: Text) -> Text:
        prompt, responses, templated = write(text.parsed, setup.tokenizer, template)
        return text._replace(parsed=text.parsed._replace(prompt=prompt, responses=responses), templated=templated)

    return each(one)


def chat_template(tokenizer: Tokenizer, name: str) -> str | None:
    """Return the Jinja template that `data.chat_template` asks for, or None where there is none.

    Args:
        tokenizer: its template is taken for "".
        name: "", "dialogue" (HH's form: Human and Assistant), or a file.

    Raises:
        ValueError: there is no such file.
    """
    if not name:
        return tokenizer.get_chat_template() if tokenizer.chat_template else None
    if name == "dialogue":
        return DIALOGUE
    if not pathlib.Path(name).is_file():
        raise ValueError(
            f"data.chat_template={name!r}: no such file; expected '' (the tokenizer's), 'dialogue' or a Jinja file"
        )
    return pathlib.Path(name).read_text(encoding="utf-8")


def write(parsed: Parsed, tokenizer: Tokenizer, template: str | None) -> Rendered:
    """Write messages as text: the prompt up to where the assistant answers, and what each response adds to that.

    A template may close every turn with EOS; a response of several turns then holds some, and ends with the last. In
    what a message says EOS is a stray mark, as it is in plain text.

    Raises:
        Unusable: the template refuses the messages, or writes the prompt differently once a response follows, or a
            message holds EOS.
        ValueError: there is no template.
    """
    if isinstance(parsed.prompt, str):
        return Rendered(parsed.prompt, tuple(str(response) for response in parsed.responses), templated=False)
    if template is None:
        raise ValueError(
            "the records hold messages, and the tokenizer has no chat template; set data.chat_template to 'dialogue' "
            "(HH's form) or to a Jinja file, or take the tokenizer of a chat model"
        )
    turns: list[dict[str, str]] = [*parsed.prompt, *(turn for response in parsed.responses for turn in response)]  # type: ignore[list-item]
    if any(tokenizer.eos_token in turn["content"] for turn in turns):
        raise Unusable(STRAY)
    prompt = _apply(tokenizer, template, parsed.prompt, ask=True)
    responses = []
    for response in parsed.responses:
        whole = _apply(tokenizer, template, (*parsed.prompt, *response), ask=False)  # type: ignore[misc]
        if not whole.startswith(prompt):
            raise Unusable("the chat template writes the prompt differently when a response follows")
        text = whole[len(prompt) :]
        # Templates such as ChatML close a turn with EOS and a line break; the response ends with its EOS.
        responses.append(text.rstrip() if text.rstrip().endswith(tokenizer.eos_token) else text)
    return Rendered(prompt, tuple(responses), templated=True)


def _apply(tokenizer: Tokenizer, template: str, messages: Messages, *, ask: bool) -> str:
    import jinja2

    try:
        return tokenizer.apply_chat_template(
            list(messages), chat_template=template, tokenize=False, add_generation_prompt=ask
        )
    except jinja2.TemplateError:
        raise Unusable("the chat template refuses the messages") from None

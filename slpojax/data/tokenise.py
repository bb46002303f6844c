"""Text to token ids: prompt and responses apart, each response closed by EOS.

Knows the tokenizer; knows no file and no limit on lengths. Prompt and response are tokenised apart, so the response's
tokens do not depend on the prompt and no BOS stands between them. EOS is an ordinary target, also where the tokenizer
pads with it: masks come from lengths, never from ids.
"""

import hashlib
import pathlib
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from slpojax.base import Int
from slpojax.data.formats import Messages, Parsed, Unusable

Tokenizer: TypeAlias = Any  # transformers.PreTrainedTokenizerBase
Ids: TypeAlias = Int[np.ndarray, " _"]

# Only asked where a folder holds tokenizer.json alone, which does not say which token ends a text.
_END_OF_TEXT = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")

# HH's own dialogue form, for tokenizers without a chat template: `data.chat_template = "dialogue"`.
DIALOGUE = (
    "{% for m in messages %}{{ '\n\nAssistant: ' if m.role == 'assistant' else '\n\nHuman: ' }}{{ m.content }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
_STRAY = "EOS inside the text"
BOS = ("tokenizer", "never", "always")


class Rendered(NamedTuple):
    """The texts of an example; `templated` where a chat template wrote them, special tokens included."""

    prompt: str
    responses: tuple[str, ...]
    templated: bool


def load_tokenizer(path: str) -> Tokenizer:
    """Load a tokenizer from a local folder or the hub, and see that it has an EOS.

    A folder with `tokenizer.json` alone does not name its EOS; it is then the one token of a short list of usual names
    that the vocabulary holds, and the data report shows it.

    Raises:
        ValueError: there is no tokenizer, or its EOS cannot be told.
    """
    import transformers

    local = pathlib.Path(path).expanduser()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(local) if local.exists() else path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"data.tokenizer={path!r}: no tokenizer could be loaded ({reason}); give a folder that holds tokenizer.json"
        ) from error
    if tokenizer.eos_token_id is None:
        known = [name for name in _END_OF_TEXT if name in tokenizer.get_vocab()]
        if len(known) != 1:
            raise ValueError(
                f"data.tokenizer={path!r} names no EOS token, and of the usual names it holds {known or 'none'}; "
                'add a tokenizer_config.json with {"eos_token": "..."}'
            )
        tokenizer.eos_token = known[0]
    return tokenizer


def digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of all that the tokenizer does to a text."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def chat_template(tokenizer: Tokenizer, name: str) -> str | None:
    """Return the Jinja template that `data.chat_template` asks for, or None where there is none.

    Args:
        tokenizer: its own template is taken for "".
        name: "", "dialogue" (HH's form: Human and Assistant), or a file.
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


def render(parsed: Parsed, tokenizer: Tokenizer, template: str | None) -> Rendered:
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
        raise Unusable(_STRAY)
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


def leading(tokenizer: Tokenizer, bos: str) -> tuple[int, ...]:
    """Return what stands before a plain prompt.

    Args:
        tokenizer: tells its BOS and its own rule.
        bos: "tokenizer": BOS where the tokenizer adds one by itself (Llama does, NeoX does not; so does TRL); "never"
            (as the original DPO program); "always". A chat template writes its own.
    """
    if bos not in BOS:
        near = get_close_matches(bos, BOS, n=1)
        raise ValueError(
            f"data.bos={bos!r} is unknown; expected {' | '.join(BOS)}" + (f" (near: {near[0]})" if near else "")
        )
    if bos == "always" and tokenizer.bos_token_id is None:
        raise ValueError(
            "data.bos='always', but the tokenizer has no BOS token; set data.bos to 'tokenizer' or 'never'"
        )
    if bos == "never" or tokenizer.bos_token_id is None:
        return ()
    by_itself = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return (tokenizer.bos_token_id,) if bos == "always" or by_itself else ()


def encode(texts: Sequence[str], tokenizer: Tokenizer) -> list[Ids]:
    """Return the token ids of every text, without special tokens of the tokenizer's own."""
    if not texts:
        return []
    ids = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [np.array(piece, np.int32) for piece in ids]


def close(
    prompt: Ids, responses: Sequence[Ids], *, eos: int, before: tuple[int, ...], templated: bool
) -> tuple[Ids, tuple[Ids, ...]]:
    """Put what stands `before` the prompt, and EOS after every response that does not end with it.

    Raises:
        Unusable: there is no prompt, or EOS stands where a plain text goes on.
    """
    if not templated and len(before):
        prompt = np.concatenate([np.array(before, np.int32), prompt])
    if not len(prompt):
        raise Unusable("empty prompt")
    closed = tuple(r if len(r) and r[-1] == eos else np.append(r, np.int32(eos)) for r in responses)
    # In plain text it is a stray mark that would end the text early; `render` looks for it in messages.
    if not templated and any((ids == eos).any() for ids in (prompt[len(before) :], *(r[:-1] for r in closed))):
        raise Unusable(_STRAY)
    return prompt, closed

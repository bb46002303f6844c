"""Special tokens in texts: those that a record's author wrote stay text, those that a template wrote are tokens.

Knows which strings a tokenizer reads as special tokens; knows no template, no format and no example. Where they are to
stay text, a private character stands for each of them, the same for the same token, until the text is tokenised:
`protect` puts it there, before a chat template writes its own special tokens around it, and `encoder` reads it.

A plain text is the one place where it has to be told apart whether a special token was meant. It was, where the whole
record is a dialogue that a template rendered beforehand: the prompt begins with a special token, or all responses end
with EOS.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from slpojax.base import Int
from slpojax.data.chain import Text, Transform, each
from slpojax.data.formats import Tokens, Unusable
from slpojax.data.options import Setup

AS_TEXT = "special tokens that the text itself holds, read as text"
RENDERED = "special tokens read as such, as the dialogue was rendered beforehand"
ENDED = "EOS at the end of a message left out, as the template ends it"
BEHIND = "blanks or a further EOS behind the EOS of a response left out"
SURROGATE = "half a character (a lone surrogate) in the text"
PRIVATE = "a private character that stands for special tokens"

_FIRST = 0x100000  # of the private characters that stand for special tokens: a plane that no script and no icon uses

Ids: TypeAlias = Int[np.ndarray, " _"]
Tokenizer: TypeAlias = Any  # transformers.PreTrainedTokenizerBase


class Marks(NamedTuple):
    """What stands for the special tokens of a tokenizer.

    Attributes:
        of: special token -> its private character.
        names: finds special tokens.
        marks: finds their private characters.
    """

    of: Mapping[str, str]
    names: re.Pattern[str]
    marks: re.Pattern[str]


def find(tokenizer: Tokenizer) -> Marks:
    """Return the strings that a tokenizer reads as special tokens, with what stands for them."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    of = {name: chr(_FIRST + i) for i, name in enumerate(sorted({*added, tokenizer.eos_token} - {""}))}
    longest_first = sorted(of, key=len, reverse=True)
    return Marks(of, re.compile("|".join(map(re.escape, longest_first))), re.compile(f"[{''.join(of.values())}]"))


def protect(setup: Setup) -> Transform:
    """Let the special tokens in a record's texts stay text, but for those of a dialogue that was rendered beforehand.

    A response may end with EOS, and blanks behind it: it is the EOS that closes the response in any case. So may a
    message, which the template ends. Drops records whose text no tokenizer can read.
    """
    known, closing = find(setup.tokenizer), setup.tokenizer.eos_token
    hide = functools.partial(known.names.sub, lambda found: known.of[found[0]])

    def one(text: Text) -> Text:
        parsed, rendered, notes = text.parsed, False, text.notes
        if isinstance(parsed.prompt, Tokens):
            return text
        _refuse(_strings(parsed), known)
        if isinstance(parsed.prompt, str):
            cut = [_without(closing, str(response)) for response in parsed.responses]
            rendered = bool(known.names.match(parsed.prompt.lstrip())) or (bool(cut) and all(eos for _, eos, _ in cut))
            notes += (BEHIND,) * sum(behind for _, _, behind in cut)
            parsed = parsed._replace(responses=tuple(response for response, _, _ in cut))
        else:
            said = parsed.prompt, *parsed.responses
            left = [_ended(closing, turns) for turns in said]
            pairs = (two for both in zip(said, left, strict=True) for two in zip(*both, strict=True))
            notes += (ENDED,) * sum(turn != other for turn, other in pairs)
            parsed = parsed._replace(prompt=left[0], responses=tuple(left[1:]))
        if not any(map(known.names.search, _strings(parsed))):
            return text._replace(parsed=parsed, notes=notes)
        if rendered:
            return text._replace(parsed=parsed, rendered=True, notes=(*notes, RENDERED))
        return text._replace(parsed=type(parsed)(*_map(hide, tuple(parsed))), notes=(*notes, AS_TEXT))

    return each(one)


def encoder(tokenizer: Tokenizer) -> Callable[[Sequence[str]], list[Ids]]:
    """Return a function from texts to their token ids, without the special tokens that the tokenizer would add.

    Texts that hold no private character are read by the tokenizer itself. The others are read by a copy of it that
    knows special tokens by their private characters alone, after names and characters have changed places.
    """
    known = find(tokenizer)
    names = {mark: name for name, mark in known.of.items()}
    either = re.compile(f"{known.names.pattern}|{known.marks.pattern}")
    copy = functools.cache(lambda: _renamed(tokenizer, known))

    def encode(texts: Sequence[str]) -> list[Ids]:
        if not texts:
            return []
        read: Callable[..., Any] = functools.partial(tokenizer, add_special_tokens=False, return_attention_mask=False)
        ids = [np.array(piece, np.int32) for piece in read(list(texts), verbose=False)["input_ids"]]
        for i, text in enumerate(texts):
            if not text.isascii() and known.marks.search(text):
                swapped = either.sub(lambda found: known.of.get(found[0]) or names[found[0]], text)
                inner, original = copy()
                ids[i] = original[np.array(inner.encode(swapped, add_special_tokens=False).ids, np.int64)]
        return ids

    return encode


def beginnings(tokenizer: Tokenizer) -> Callable[[str], Ids]:
    """Return a function from a text to the character at which each of its tokens begins, those of `encoder`.

    Several tokens of one character begin at it. Of a blank that a tokenizer puts into the next word's token it depends
    on the tokenizer whether the token begins with it.
    """
    known = find(tokenizer)
    names = {mark: name for name, mark in known.of.items()}
    either = re.compile(f"{known.names.pattern}|{known.marks.pattern}")
    copy = functools.cache(lambda: _renamed(tokenizer, known)[0])

    def begins(text: str) -> Ids:
        if text.isascii() or not known.marks.search(text):
            offsets = tokenizer(
                text,
                add_special_tokens=False,
                return_attention_mask=False,
                return_offsets_mapping=True,
                verbose=False,
            )["offset_mapping"]
            return np.array([begin for begin, _ in offsets], np.int32)
        swapped, origin, last = "", [], 0
        for found in either.finditer(text):
            other = known.of.get(found[0]) or names[found[0]]
            swapped += text[last : found.start()] + other
            origin += [*range(last, found.start()), *[found.start()] * len(other)]
            last = found.end()
        swapped, origin = swapped + text[last:], [*origin, *range(last, len(text) + 1)]
        offsets = copy().encode(swapped, add_special_tokens=False).offsets
        return np.array([origin[begin] for begin, _ in offsets], np.int32)

    return begins


def _renamed(tokenizer: Tokenizer, known: Marks) -> tuple[Any, Ids]:
    """Return the copy, and the original id of each of its ids: those of added tokens may be others."""
    import tokenizers

    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    inner["truncation"] = inner["padding"] = None
    added = {token["content"]: token["id"] for token in inner["added_tokens"]}
    for token in inner["added_tokens"]:
        token["content"] = known.of.get(token["content"], token["content"])
    copy = tokenizers.Tokenizer.from_str(json.dumps(inner))
    original = np.arange(1 + max(copy.get_vocab().values()), dtype=np.int32)
    for content, number in added.items():
        original[copy.token_to_id(known.of.get(content, content))] = number
    return copy, original


def _without(eos: str, response: str) -> tuple[str, bool, bool]:
    """Return a response without the EOS that ends it, whether it had one, and whether anything stood behind it."""
    bare = response.rstrip()
    if not bare.endswith(eos):
        return response, False, False
    while bare.rstrip().endswith(eos):
        bare = bare.rstrip().removesuffix(eos)
    return bare, True, response != f"{bare}{eos}"


def _ended(eos: str, turns: Any) -> tuple[dict[str, Any], ...]:
    """Return messages without an EOS that ends what one of them says."""
    said = ((turn, turn.get("content")) for turn in turns)
    return tuple(turn | {"content": _without(eos, text)[0]} if isinstance(text, str) else turn for turn, text in said)


def _refuse(pieces: Iterable[str], known: Marks) -> None:
    for piece in pieces:
        if not piece.isascii():
            try:
                piece.encode()
            except UnicodeEncodeError:
                raise Unusable(SURROGATE) from None
            if known.marks.search(piece):
                raise Unusable(PRIVATE)


def _strings(value: Any) -> Iterator[str]:
    """Yield every string in a text, or in messages and whatever they hold."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _strings(inner)


def _map(change: Callable[[str], str], value: Any) -> Any:
    """Return a value of the same form with every string changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _map(change, inner) for name, inner in value.items()}
    return type(value)(_map(change, inner) for inner in value) if isinstance(value, list | tuple) else value

"""What a policy is asked: prompts out of files of instructions or of preference data, as token ids; and its answers.

Knows records, messages, templates and the tokenizer; knows no model. A prompt of messages ends where the assistant
answers, as the chat template writes it; a plain one is a text that goes on. What a user asked, as AlpacaEval's
`instruction`, is a message where there is a template, and a plain text where there is none.
"""

import bisect
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from slpojax.data import advice, fields, formats, marks, parsing, report, sandbox, sources, templates, tokenise, turns
from slpojax.data.chain import Text
from slpojax.data.formats import Parsed, Tokens, Unusable
from slpojax.data.marks import Ids, Tokenizer
from slpojax.data.options import Settings, Setup, Source
from slpojax.data.report import Count, Report, Tally

PLAIN = "prompts"  # what files of instructions and prompts are called, beside the formats of preferences
EMPTY = "empty prompt"
LONG = "prompt that leaves less of data.max_length than generate.max_new_tokens"
TWICE = "prompt that an earlier row has"
ANSWERED = "a prompt that ends with a turn of the assistant"

_WITH_IT = ("uid", "dataset", "datasplit", "category", "subcategory", "cluster", "split", "type")
Stop: TypeAlias = Callable[[np.ndarray], int | None]  # ids of an answer so far -> how many stay; None for all

_SHOWN = 10  # row numbers that a line names


class Asked(NamedTuple):
    """A prompt.

    Attributes:
        number: of its record in the source, from 0.
        prompt: the text, or the messages.
        instruction: what the user said last; the text where there are no messages.
        ids: its tokens, at least one.
        about: fields of the record that belong to what is asked, and go on with the answers: uid, dataset, ...
    """

    number: int
    prompt: str | list[dict[str, Any]]
    instruction: str
    ids: Ids
    about: Mapping[str, Any]


def load(
    source: Source, settings: Settings, *, format: str, tokenizer: Tokenizer, most: int
) -> tuple[list[Asked], Report]:
    """Read the prompts of a source.

    Args:
        source: where the records are.
        settings: how prompts become token ids.
        format: "prompts": records with `prompt` (a text, or messages), `instruction` (what a user said) or `messages`;
            or a format of preference data, each of whose prompts is asked once.
        tokenizer: of `tokenise.load_tokenizer`.
        most: tokens of a prompt.

    Returns:
        The prompts, in the order of the source, and a report that counts each record that was left out.

    Raises:
        ValueError: an unreadable source, records of another format, or no usable prompt.
    """
    setup = Setup(source, settings.encoding._replace(format=format), settings.candidates, settings.rules, tokenizer, 0)
    read = sources.read(source.path, split=source.split, rows=source.rows)
    tally = report.tally(functools.partial(sources.where, read))
    about: dict[int, Mapping[str, Any]] = {}
    items = _noting(sources.numbered(read), about)
    texts = _instructions(items, setup, tally) if format == PLAIN else _of_preferences(items, setup, tally)
    said: dict[int, str | turns.Messages | Tokens] = {}
    encode, seen, found = _encoder(setup), set[bytes](), list[Asked]()
    for text in marks.protect(setup)(_remembered(texts, said), tally):
        try:
            ids = encode(text)
            if len(ids) > most:
                raise Unusable(LONG)
            if format != PLAIN and ids.tobytes() in seen:
                raise Unusable(TWICE)
        except Unusable as reason:
            tally.drop(text.row, str(reason))
        else:
            seen.add(ids.tobytes())
            tally.note(text.row, text.notes)
            found.append(Asked(text.row, *_shown(said[text.row]), ids, about[text.row]))
    made = _report(
        f"{source.path}{f', rows {source.rows}' if source.rows else ''}, as {format}", tally, len(read.records), found
    )
    if not found:
        raise ValueError(f"{made.source}: {advice.why_none(made.dropped, made.read)}")
    return found, made


def of_texts(prompts: Iterable[str], tokenizer: Tokenizer) -> list[Asked]:
    """Return plain texts as prompts, with the special tokens that the tokenizer adds by itself."""
    known: dict[str, Ids] = {}
    for prompt in prompts:
        if prompt not in known:
            known[prompt] = np.array(tokenizer(prompt)["input_ids"], np.int32)
    return [Asked(n, prompt, prompt, known[prompt], {}) for n, prompt in enumerate(prompts)]


def answers(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[Sequence[int]]) -> list[str]:
    """Return answers as the texts that follow their prompt, without special tokens.

    Args:
        tokenizer: that made the ids.
        prompt: the prompt's ids.
        ids: of each answer.
    """
    decode = functools.partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    begin, before = len(decode(list(prompt))), list(prompt)
    return [decode([*before, *own])[begin:] for own in ids]


def stop(tokenizer: Tokenizer, texts: Sequence[str]) -> Stop | None:
    """Return how many ids of an answer stay where a text has come that ends it: those that stand before it whole.

    Args:
        tokenizer: that made the ids.
        texts: that end an answer; None is returned where there are none.
    """
    if not texts:
        return None
    decode = functools.partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def keep(ids: np.ndarray) -> int | None:
        own = [int(number) for number in ids]
        text = decode(own)
        begins = min((at for at in map(text.find, texts) if at >= 0), default=None)
        if begins is None:
            return None
        return bisect.bisect_right(range(1, len(own)), begins, key=lambda n: len(decode(own[:n])))

    return keep


def _noting(items: Iterable[tuple[int, Any]], about: dict[int, Mapping[str, Any]]) -> Iterator[tuple[int, Any]]:
    """Pass records on, and keep of each what goes on with the answers."""
    for row, record in items:
        there = record if isinstance(record, Mapping) else {}
        about[row] = {name: there[name] for name in _WITH_IT if isinstance(there.get(name), str | int | float)}
        yield row, record


def _remembered(texts: Iterable[Text], said: dict[int, Any]) -> Iterator[Text]:
    """Pass prompts on, and keep each as its record had it."""
    for text in texts:
        said[text.row] = text.parsed.prompt
        yield text


def _instructions(items: Iterable[tuple[int, Any]], setup: Setup, tally: Tally) -> Iterator[Text]:
    """Yield the prompts of records with `prompt`, `instruction` or `messages`.

    Raises:
        ValueError: a record has none of them; names its place and what it has.
    """
    chat = templates.chat_template(setup.tokenizer, setup.encoding.chat_template) is not None
    for place, (row, record) in enumerate(items):
        try:
            yield Text(row, place, Parsed(_prompt(record, chat), ()))
        except Unusable as reason:
            tally.drop(row, str(reason))
        except TypeError as error:
            raise ValueError(
                f"{tally.where(row)} is no prompt: {error}; expected an object with `prompt` (a text, or messages) or "
                f"`instruction`; generate.format names a format of preference data: {', '.join(formats.FORMATS)}"
            ) from None


def _prompt(record: Any, chat: bool) -> str | turns.Messages:
    """Return what a record asks.

    Raises:
        TypeError: it is of another kind; what was got, without its text.
    """
    if not isinstance(record, Mapping):
        raise TypeError(f"it is {fields.kind(record)}")
    name = next((name for name in ("prompt", "instruction", "messages") if record.get(name) is not None), None)
    if name is None:
        raise TypeError("it has none of the fields")
    value = record[name]
    if not isinstance(value, str):
        if not isinstance(value, list) or name == "instruction":
            raise TypeError(f"`{name}` is {fields.kind(value)}")
        return turns.read(value)
    if name == "messages":
        raise TypeError("`messages` is a string")
    of_user = name == "instruction" or "uid" in record  # Arena-Hard's questions have a uid, and call them prompt
    return ({"role": "user", "content": value},) if of_user and chat else value


def _of_preferences(items: Iterable[tuple[int, Any]], setup: Setup, tally: Tally) -> Iterator[Text]:
    """Yield the prompts of preference data."""
    for text in parsing.parse(setup)(items, tally):
        yield Text(text.row, text.place, text.parsed._replace(responses=(), scores=None, notes=()))


def _encoder(setup: Setup) -> Callable[[Text], Ids]:
    """Return what makes the token ids of a prompt; it raises Unusable where there is none to ask."""
    tokenizer = setup.tokenizer
    before, encode = tokenise.leading(tokenizer, setup.encoding.bos), marks.encoder(tokenizer)

    def ids_of(text: Text) -> Ids:
        prompt = text.parsed.prompt
        if isinstance(prompt, Tokens):
            return np.array(prompt.ids, np.int32)
        if isinstance(prompt, str):
            if not prompt.strip():
                raise Unusable(EMPTY)
            [ids] = encode([prompt])
            return (
                ids if ids[: len(before)].tolist() == [*before] else np.concatenate([np.array(before, np.int32), ids])
            )
        if turns.blank(prompt):
            raise Unusable(EMPTY)
        if prompt[-1]["role"] == "assistant":
            raise Unusable(ANSWERED)
        try:
            written = templates.ask(
                prompt,
                tokenizer,
                setup.encoding.chat_template,
                tools=text.parsed.tools,
                arguments=setup.encoding.chat_template_kwargs,
            )
        except sandbox.TooMuch as limit:
            raise ValueError(f"the chat template was stopped at row {text.row}: {limit}; mend the template") from None
        return encode([written])[0]

    return ids_of


def _shown(prompt: str | turns.Messages | Tokens) -> tuple[str | list[dict[str, Any]], str]:
    """Return a prompt as a file holds it, and what the user said last."""
    if isinstance(prompt, Tokens):
        return prompt.text, prompt.text
    if isinstance(prompt, str):
        return prompt, prompt
    asked = [turn for turn in prompt if turn["role"] == "user"] or list(prompt)
    return list(prompt), str(asked[-1].get("content", ""))


def _report(source: str, tally: Tally, read: int, found: Sequence[Asked]) -> Report:
    sizes = [len(one.ids) for one in found] or [0]
    size = report.Size(sum(sizes) / len(sizes), max(sizes), sum(sizes))
    return Report(
        source=source,
        read=read,
        kept=len(found),
        dropped={reason: Count(len(rows), tuple(rows[:_SHOWN])) for reason, rows in tally.dropped.items()},
        noted={note: Count(len(rows), tuple(rows[:_SHOWN])) for note, rows in tally.noted.items()},
        sizes={"prompt": size},
        candidates=report.Candidates(0.0, 0, 0, 0.0),
        labels=None,
        special="prompts alone",
    )

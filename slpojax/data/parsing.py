"""The first transform: a record becomes a prompt with its responses, as the format's parser reads it.

Knows formats, how records are joined, and what every dialogue must keep to; knows no token.
"""

import collections
import functools
import pathlib
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from slpojax import wording
from slpojax.data import counting, fields, formats, sources, turns
from slpojax.data.chain import Text, Transform
from slpojax.data.formats import Parsed, Record, Tokens, Unusable
from slpojax.data.options import Setup
from slpojax.data.report import Tally
from slpojax.data.turns import Messages

_END_CUT = "response cut behind the assistant's last turn"
_JSON = "text that is messages in JSON, read as plain text (data.format=conversational reads them)"
_LOOKS = re.compile(r'\s*\[\s*\{\s*"(role|from)"\s*:')
APART = "a record apart from the others of its"

_FIELDS = 20  # of a record that an error lists


def parse(setup: Setup) -> Transform:
    """Parse `(row, record)` pairs, consecutive records of one example together; drop what holds no example.

    Of messages the record's `tools` come with them. A response of messages begins with the assistant's turn and ends
    with one; where all of its turns count (`data.turns`) it holds none of a user. What comes behind is left out. Which
    fields no parser read is counted.

    Raises:
        ValueError: an unknown format; later, a record of another format.
    """
    name, every = setup.encoding.format, setup.encoding.turns == counting.ALL
    if setup.encoding.turns not in counting.TURNS:
        raise wording.unknown("data.turns", setup.encoding.turns, counting.TURNS)
    parser, field = formats.find(name), formats.grouped_by(name)

    def transform(items: Iterable[tuple[int, Any]], tally: Tally) -> Iterator[Text]:
        read: set[str] = set()
        records = _objects(items, tally)
        for place, (row, record) in enumerate(_joined(records, field, tally) if field else records):
            tally.fields.update(field for field, value in record.items() if value not in (None, "", [], {}))
            try:
                where = functools.partial(tally.where, row)
                parsed = _parse(parser, name, _Watched(record, read), where, every=every)
            except Unusable as reason:
                tally.drop(row, str(reason))
            else:
                yield Text(row, place, parsed, notes=parsed.notes)
        tally.fields.difference_update(read)

    return transform


class _Watched(dict[str, Any]):
    """A record that remembers which of its fields a parser read."""

    def __init__(self, record: Record, read: set[str]):
        super().__init__(record)
        self._read = read

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:  # with it, dict(record) and {**record} go through __getitem__
        return super().__iter__()

    def items(self) -> Any:
        self._read.update(self)
        return super().items()

    def values(self) -> Any:
        self._read.update(self)
        return super().values()


def _joined(items: Iterable[tuple[int, Record]], field: str, tally: Tally) -> Iterator[tuple[int, Record]]:
    """Join the records of an example; drop one that stands alone although there are others of its example elsewhere."""
    groups = list(sources.grouped(items, field))
    keys = [str(record[field][0]) if record.get(field) else "" for _, record in groups]
    times = collections.Counter(keys)
    for key, (row, record) in zip(keys, groups, strict=True):
        if times[key] > 1 and len(record[field]) == 1:
            tally.drop(row, f"{APART} {field}")
        else:
            yield row, record


def _objects(items: Iterable[tuple[int, Any]], tally: Tally) -> Iterator[tuple[int, Record]]:
    for row, record in items:
        if not isinstance(record, Mapping):
            array = "; name a file that is one JSON array .json" * isinstance(record, list)
            raise ValueError(
                f"{tally.where(row)} is {fields.kind(record)}, expected an object with the fields of a record{array}"
            )
        yield row, record


def _parse(parser: formats.Parser, name: str, record: Record, where: Callable[[], str], *, every: bool) -> Parsed:
    """Parse a record; whatever a parser stumbles over is a record of another format, at the place `where`.

    What parsers here say of it is shown; of another module's the type of the error and its line, as its words may be
    the row's text.
    """
    try:
        return _settle(_checked(parser(record)), record, every)
    except Unusable:
        raise
    except Exception as error:
        raiser = traceback.extract_tb(error.__traceback__)[-1]
        if pathlib.Path(raiser.filename).parent != pathlib.Path(__file__).parent:
            said = f"{type(error).__name__} in {raiser.filename}, line {raiser.lineno}"
        else:
            said = f"it has no field {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{where()} is no record of data.format={name!r}: {said}; its fields are {wording.few(record, _FIELDS)}; "
            f"formats: {', '.join(formats.FORMATS)}"
        ) from error


def _checked(parsed: Any) -> Parsed:
    """Return what a parser made, if it is what parsers make.

    Raises:
        TypeError: it is not.
        Unusable: it has a score that float32 does not hold.
    """
    if not isinstance(parsed, Parsed):
        raise TypeError(f"the parser returned a {type(parsed).__name__}, expected formats.Parsed")
    kinds = {_kind(piece) for piece in (parsed.prompt, *parsed.responses)}
    if len(kinds) > 1:
        both = " and partly ".join(sorted(kinds, reverse=True))
        raise TypeError(f"prompt and responses are partly {both}, expected one of them")
    if parsed.scores is not None and len(parsed.scores) != len(parsed.responses):
        raise TypeError(f"{len(parsed.responses)} responses have {len(parsed.scores)} scores")
    return parsed._replace(scores=parsed.scores and tuple(map(fields.number, parsed.scores)))


def _kind(piece: Any) -> str:
    return "text" if isinstance(piece, str) else "token ids" if isinstance(piece, Tokens) else "messages"


def _settle(parsed: Parsed, record: Record, every: bool) -> Parsed:
    """Return what was parsed, as every format must keep to it.

    Raises:
        Unusable: see `_answer`, and `turns.tools`.
    """
    notes = list(parsed.notes)
    if isinstance(parsed.prompt, Tokens):
        return parsed
    if isinstance(parsed.prompt, str):
        if any(_LOOKS.match(text) for text in (parsed.prompt, *parsed.responses) if isinstance(text, str)):
            notes.append(_JSON)
        return parsed._replace(notes=tuple(notes))
    said = [*parsed.prompt, *(turn for response in parsed.responses for turn in response)]
    if not all(isinstance(turn.get("content", ""), str) for turn in said if isinstance(turn, Mapping)):
        raise Unusable("a message whose content is no text")
    responses = tuple(_answer(response, notes, every) for response in parsed.responses)  # type: ignore[arg-type]
    if any(len(response) > 1 for response in responses):
        notes.append(formats.SEVERAL)
    tools = parsed.tools or turns.tools(record.get("tools"))
    return parsed._replace(responses=responses, tools=tools, notes=tuple(notes))


def _answer(response: Messages, notes: list[str], every: bool) -> Messages:
    """Return the turns of a response: from the assistant's first turn to its last.

    Where every token of a response is trained, a user's turn, and what answers it, cannot be part of it. The result of
    a tool may stand between two turns of the assistant.

    Raises:
        Unusable: the response begins with a turn that is not the assistant's.
    """
    if response and response[0]["role"] != "assistant":
        raise Unusable(f"a response that begins with a turn of the {response[0]['role']}")
    own = len(response)
    for i, turn in enumerate(response):
        if every and turn["role"] not in ("assistant", "tool", "ipython"):
            own = i
            break
    notes += [formats.CUT] * (own < len(response))
    kept = response[:own]
    while kept and kept[-1]["role"] != "assistant":
        kept = kept[:-1]
    notes += [_END_CUT] * (len(kept) < own)
    return kept

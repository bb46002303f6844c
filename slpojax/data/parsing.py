"""The first transform: a record becomes a prompt with its responses, as the format's parser reads it.

Knows formats and how records are joined; knows no token.
"""

import functools
import itertools
import pathlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from slpojax.data import formats, sources
from slpojax.data.chain import Text, Transform
from slpojax.data.formats import Parsed, Record, Unusable
from slpojax.data.options import Setup
from slpojax.data.report import Tally

_FIELDS, _LONGEST = 20, 40  # of a record that an error lists, and characters of each


def parse(setup: Setup) -> Transform:
    """Parse `(row, record)` pairs, consecutive records of one example together; drop what holds no example.

    Raises:
        ValueError: an unknown format; later, a record of another format.
    """
    name = setup.encoding.format
    parser, field = formats.find(name), formats.grouped_by(name)

    def transform(items: Iterable[tuple[int, Any]], tally: Tally) -> Iterator[Text]:
        records = _objects(items, tally)
        for place, (row, record) in enumerate(sources.grouped(records, field) if field else records):
            try:
                parsed = _parse(parser, name, record, functools.partial(tally.where, row))
            except Unusable as reason:
                tally.drop(row, str(reason))
            else:
                yield Text(row, place, parsed, notes=parsed.notes)

    return transform


def _objects(items: Iterable[tuple[int, Any]], tally: Tally) -> Iterator[tuple[int, Record]]:
    for row, record in items:
        if not isinstance(record, Mapping):
            array = "; name a file that is one JSON array .json" * isinstance(record, list)
            raise ValueError(
                f"{tally.where(row)} is {formats.kind(record)}, expected an object with the fields of a record{array}"
            )
        yield row, record


def _parse(parser: formats.Parser, name: str, record: Record, where: Callable[[], str]) -> Parsed:
    """Parse a record; whatever a parser stumbles over is a record of another format, at the place `where`.

    What parsers here say of it is shown; of another module's the type of the error and its line, as its words may be
    the row's text.
    """
    try:
        return _checked(parser(record))
    except Unusable:
        raise
    except Exception as error:
        raiser = traceback.extract_tb(error.__traceback__)[-1]
        if pathlib.Path(raiser.filename).parent != pathlib.Path(__file__).parent:
            said = f"{type(error).__name__} in {raiser.filename}, line {raiser.lineno}"
        else:
            said = f"it has no field {error}" if isinstance(error, KeyError) else str(error)
        fields = [" ".join(str(field)[:_LONGEST].split()) for field in itertools.islice(record, _FIELDS)]
        raise ValueError(
            f"{where()} is no record of data.format={name!r}: {said}; its fields are {', '.join(fields)}"
            f"{', ...' if len(record) > _FIELDS else ''}; formats: {', '.join(formats.FORMATS)}"
        ) from error


def _checked(parsed: Any) -> Parsed:
    """Return what a parser made, if it is what parsers make.

    Raises:
        TypeError: it is not.
        Unusable: it has a score that float32 does not hold.
    """
    if not isinstance(parsed, Parsed):
        raise TypeError(f"the parser returned a {type(parsed).__name__}, expected formats.Parsed")
    plain = {isinstance(piece, str) for piece in (parsed.prompt, *parsed.responses)}
    if len(plain) > 1:
        raise TypeError("prompt and responses are partly text and partly messages, expected one of them")
    if parsed.scores is not None and len(parsed.scores) != len(parsed.responses):
        raise TypeError(f"{len(parsed.responses)} responses have {len(parsed.scores)} scores")
    return parsed._replace(scores=parsed.scores and tuple(map(formats.number, parsed.scores)))

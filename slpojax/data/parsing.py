"""The first transform: a record becomes a prompt with its responses, as the format's parser reads it.

Knows formats and how records are joined; knows no token.
"""

from collections.abc import Iterable, Iterator

from slpojax.data import formats, sources
from slpojax.data.chain import Text, Transform
from slpojax.data.formats import Parsed, Unusable
from slpojax.data.options import Setup
from slpojax.data.report import Tally


def parse(setup: Setup) -> Transform:
    """Parse `(row, record)` pairs, consecutive records of one example together; drop what holds no example.

    Raises:
        ValueError: an unknown format; later, a record of another format.
    """
    name = setup.encoding.format
    parser, field = formats.find(name), formats.grouped_by(name)

    def transform(items: Iterable[tuple[int, formats.Record]], tally: Tally) -> Iterator[Text]:
        for place, (row, record) in enumerate(sources.grouped(items, field) if field else items):
            try:
                parsed = _parse(parser, name, row, record)
            except Unusable as reason:
                tally.drop(row, str(reason))
            else:
                yield Text(row, place, parsed, notes=parsed.notes)

    return transform


def _parse(parser: formats.Parser, name: str, row: int, record: formats.Record) -> Parsed:
    try:
        return parser(record)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"row {row} is no record of data.format={name!r}: "
            + (f"it has no field {error}" if isinstance(error, KeyError) else str(error))
            + f"; its fields are {', '.join(record)}; formats: {', '.join(formats.FORMATS)}"
        ) from error

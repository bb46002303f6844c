"""What flows through the chain of transforms from records to examples, and how a transform drops and notes.

Knows records, texts and examples only as what flows; knows no transform and no order of them. A transform is a function
`(items, tally) -> items`, and the chain is a list of functions `Setup -> Transform`, or None where the settings ask for
nothing. What flows is first `(row, record)`, then `Text`, then `Group`, one of them for each record. To drop an item a
transform raises `Unusable` inside `each`; to note something of an item it adds a reason to the item's `notes`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

from slpojax.data.examples import Example
from slpojax.data.formats import Parsed, Unusable
from slpojax.data.options import Setup
from slpojax.data.report import Tally
from slpojax.data.sandbox import Span

Transform: TypeAlias = Callable[[Iterable[Any], Tally], Iterable[Any]]
Factory: TypeAlias = Callable[[Setup], Transform | None]


class Text(NamedTuple):
    """A record as text.

    Attributes:
        row: the number of the record in its source.
        place: how many records come before it in what is read; records that are joined count once.
        parsed: prompt, responses and scores: plain text or messages, after `templates.render` plain text alone.
        templated: whether a chat template wrote the texts, special tokens included.
        ended: of each response that a template wrote, whether the template ends it, so that no EOS is put behind it.
        spans: of each response, the characters that count; () where all of all of them do.
        rendered: whether a chat template wrote the record's own texts before, special tokens included.
        notes: what the report counts of the record once it has come as far as the next `settle`.
    """

    row: int
    place: int
    parsed: Parsed
    templated: bool = False
    ended: tuple[bool, ...] = ()
    spans: tuple[tuple[Span, ...], ...] = ()
    rendered: bool = False
    notes: tuple[str, ...] = ()


class Group(NamedTuple):
    """The examples that are made of one record; they stay together.

    Attributes:
        row: the number of the record in its source.
        examples: one, until a transform makes more of it.
        ordered: whether the order of the candidates alone says which is better, whatever their scores.
        scored: whether the record has scores.
        labelled: whether the examples have labels.
        templated: whether a chat template wrote the texts.
        as_ids: whether the record gave token ids.
        sampled: whether the candidates stand as they were sampled, so that none is left out.
        added: names of the last candidates that are no responses of the record to its prompt.
        notes: what the report counts of the record once it has come as far as the next `settle`.
    """

    row: int
    examples: tuple[Example, ...]
    ordered: bool
    scored: bool
    labelled: bool
    templated: bool = False
    as_ids: bool = False
    sampled: bool = False
    added: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def each(function: Callable[[Any], Any]) -> Transform:
    """Make a transform of a function of one item; items for which it raises `Unusable` are dropped and counted."""

    def transform(items: Iterable[Any], tally: Tally) -> Iterator[Any]:
        for item in items:
            try:
                made = function(item)
            except Unusable as reason:
                tally.drop(item.row, str(reason))
            else:
                yield made

    return transform


def settle(_: Setup) -> Transform:
    """Count the notes of the items that came this far; what a dropped item was noted for is not counted."""

    def transform(items: Iterable[Any], tally: Tally) -> Iterator[Any]:
        for item in items:
            tally.note(item.row, item.notes)
            yield item._replace(notes=())

    return transform

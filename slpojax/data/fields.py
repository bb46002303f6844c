"""Fields of a record, read for parsers: what is missing, null or of another kind is refused without showing its text.

Knows what JSON calls a value, and cells of CSV files, in which numbers are text; knows no format. `KeyError` and
`TypeError` say that a record is of another format, `Unusable` that it holds no example.
"""

import decimal
import math
import numbers
from collections.abc import Mapping
from typing import Any, TypeAlias

from slpojax.data import turns
from slpojax.data.parsed import Parsed
from slpojax.data.sources import Cell
from slpojax.data.turns import Messages, Unusable

Record: TypeAlias = Mapping[str, Any]

LOWER = "the chosen response has the lower score"
_LARGEST = 3.4028234663852886e38  # of float32
_FLAGS = {"1": 1, "true": 1, "0": 0, "false": 0}  # how a cell says it, in small letters


def pair(
    record: Record,
    prompt: str | Messages,
    responses: tuple[str | Messages, str | Messages],
    notes: tuple[str, ...] = (),
    scores: tuple[str, str] = ("score_chosen", "score_rejected"),
) -> Parsed:
    """Return a pair whose order the record states, with the scores that it may have.

    Args:
        record: what is read.
        prompt: text or messages.
        responses: the better one first.
        notes: what the report should count.
        scores: names of the fields with their scores, which a record need not have.
    """
    found = [record.get(name) for name in scores]
    if any(score is None for score in found):
        return Parsed(prompt, responses, None, notes, stated=True)
    better, worse = map(number, found)
    notes += (LOWER,) if better < worse else ()
    return Parsed(prompt, responses, (better, worse), notes, stated=True)


def field(record: Record, name: str) -> Any:
    """Return what a field holds.

    Raises:
        KeyError: there is no such field.
        Unusable: it is null.
    """
    if name not in record:
        raise KeyError(name)
    if record[name] is None:
        raise Unusable(f"{name} is null")
    return record[name]


def text(record: Record, name: str) -> str:
    """Return the string of a field."""
    value = field(record, name)
    if not isinstance(value, str):
        messages_there = "; data.format=conversational reads messages" * isinstance(value, list | Mapping)
        raise TypeError(f"{name} is {type(value).__name__}, expected a string{messages_there}")
    return value


def texts(record: Record, name: str) -> list[str]:
    """Return the strings of a field that is an array of them."""
    value = field(record, name)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"{name} is {kind(value)}, expected an array of strings")
    return value


def scores(record: Record, name: str, count: int) -> list[float]:
    """Return the numbers of a field that is an array of so many."""
    value = field(record, name)
    if not isinstance(value, list) or len(value) != count:
        raise TypeError(f"{name} is {kind(value)}, expected an array of {count} numbers, one a response")
    return list(map(number, value))


def flag(record: Record, name: str) -> int:
    """Return 1 where a field is true or 1, 0 where it is false or 0."""
    value = field(record, name)
    found = _FLAGS.get(value.casefold()) if isinstance(value, Cell) else int(value) if value in (0, 1) else None
    if found is None:
        raise TypeError(f"{name} is {kind(value)}, and neither true nor false, nor 1 nor 0")
    return found


def objects(record: Record, name: str) -> list[Record]:
    """Return the objects of a field that is an array of them."""
    listed = field(record, name)
    if not isinstance(listed, list) or not all(isinstance(answer, Mapping) for answer in listed):
        found = kind(listed) if not isinstance(listed, list) else "an array of something else"
        raise TypeError(f"{name} is {found}, expected an array of objects")
    return listed


def inner(record: Record, name: str) -> Record:
    """Return the object of a field."""
    value = field(record, name)
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is {kind(value)}, expected an object")
    return value


def conversations(record: Record) -> Messages:
    """Return the messages of LLaMA-Factory's layout: its field `system` is the system turn, where there is none yet."""
    said = turns.read(field(record, "conversations"))
    return said if said and said[0]["role"] == "system" else (*turns.system(record.get("system")), *said)


def dialogue(record: Record) -> tuple[Messages, Messages]:
    """Return the prompt and the response of `messages`, or of `conversations`: what comes before the last, and it."""
    said = turns.read(record["messages"]) if record.get("messages") else conversations(record)
    if len(said) < 2 or said[-1]["role"] != "assistant":
        raise Unusable("the last message is not the assistant's")
    return said[:-1], said[-1:]


def optional(value: Any, name: str) -> str:
    """Return a text, "" for null; `name` is what an error calls it."""
    if not isinstance(value, str | None):
        raise TypeError(f"{name} is {kind(value)}, expected a string")
    return value or ""


def reply(value: Any, name: str) -> Messages:
    """Return a text, or null, as the assistant's turn; `name` is what an error calls it."""
    return ({"role": "assistant", "content": optional(value, name)},)


def number(value: Any, what: str = "score") -> float:
    """Return a number that float32 holds.

    Text that looks like one is none, as "10" sorts before "2"; a cell of a CSV file is, as all of them are text.
    """
    if isinstance(value, Cell):
        value = _of_cell(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real | decimal.Decimal):
        raise Unusable(f"a {what} that is no number, but {kind(value)}")
    try:
        real = float(value)
    except OverflowError:
        real = math.inf
    if not abs(real) <= _LARGEST:
        raise Unusable(f"a {what} that is no number, or none that float32 holds")
    return real


def kind(value: Any) -> str:
    """Return what JSON calls a value, for errors, which never show the value itself.

    Example:
        >>> [kind(value) for value in (None, True, 1, "a", [], {})]
        ['null', 'true or false', 'a number', 'a string', 'an array', 'an object']
    """
    kinds = ((bool, "true or false"), (int | float, "a number"), (str, "a string"), (list, "an array"))
    known = next((name for of, name in kinds if isinstance(value, of)), f"a {type(value).__name__}")
    return "null" if value is None else "an object" if isinstance(value, Mapping) else known


def _of_cell(cell: Cell) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return str(cell)

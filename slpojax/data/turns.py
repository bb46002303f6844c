"""Messages as public data holds them, made into one form: the one that chat templates read.

Knows roles and the layouts of messages; knows no format of records and no template.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

# {"role", "content"} and whatever else a message has, such as tool_calls; rendered by the tokenizer's chat template.
Messages: TypeAlias = tuple[dict[str, Any], ...]

# Names of roles in public data, in small letters -> those that chat templates know.
_ROLES = {
    "system": "system",
    "developer": "developer",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "ipython",
}
_SAID = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking")
_LAYOUT = ("role", "from", "content", "value")
_NAME = re.compile(r"[\w-]{1,24}")


class Unusable(Exception):
    """The record holds no example; the message is the reason under which the report counts it."""


def read(value: Any) -> Messages:
    """Return messages in one form: {"role", "content"} with everything else that they hold, but for what is null.

    Args:
        value: a message or a list of them, or the same as JSON text, or a mapping of lists. A message is {"role",
            "content"} or {"from", "value"}; where it is both (Arrow joins two layouts so), what is not null counts.
            A content of text parts is their texts, divided by line breaks. The value of LLaMA-Factory's `function_call`
            is JSON, and becomes a tool call.

    Raises:
        Unusable: a message without a role that is known, or without anything said.
        TypeError: no messages.
    """
    if isinstance(value, str):
        value = _json(value)
    turns = [value] if isinstance(value, Mapping) else value
    if isinstance(value, Mapping) and isinstance(value.get("role") or value.get("from"), list):
        columns = {name: column for name, column in value.items() if isinstance(column, list)}
        if len({len(column) for column in columns.values()}) > 1:
            raise Unusable("messages as lists of unequal lengths")
        turns = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if isinstance(turns, str) or not isinstance(turns, Sequence) or not all(isinstance(t, Mapping) for t in turns):
        plain = "; data.format=pairs reads plain strings" if isinstance(turns, str) else ""
        got = "str" if plain else type(value).__name__  # also of a cell of a CSV file
        raise TypeError(f"got {got} where messages were expected{plain}")
    return tuple(map(_turn, turns))


def tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Return the functions that a record offers, which a chat template describes; a list, also as JSON text.

    Raises:
        Unusable: there is something else.
    """
    listed = (_json(value) if value.strip() else []) if isinstance(value, str) else value
    if not listed:
        return ()
    if not isinstance(listed, Sequence) or not all(isinstance(tool, Mapping) for tool in listed):
        raise Unusable("tools that are no list of functions")
    return tuple(_without_nulls(tool) for tool in listed)


def system(text: Any) -> Messages:
    """Return the system turn of a text, or none where it is blank."""
    return ({"role": "system", "content": text},) if isinstance(text, str) and text.strip() else ()


def shared(first: Messages, second: Messages) -> int:
    """Return how many turns two dialogues have in common at their beginning; other fields, as an id, may differ."""
    pairs = zip(first, second, strict=False)
    return next(
        (i for i, (a, b) in enumerate(pairs) if any(a.get(name) != b.get(name) for name in _SAID)),
        min(len(first), len(second)),
    )


def same(first: Messages, second: Messages) -> bool:
    """Return whether two dialogues say the same."""
    return shared(first, second) == len(first) == len(second)


def blank(turns: Messages) -> bool:
    """Return whether nothing is said, thought or called."""
    return not any(text.strip() for turn in turns for name, text in said(turn) if name != "name")


def said(turn: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (field, text) of what a turn says: its content, thoughts, name, and the functions that it calls."""
    for name in ("content", "reasoning_content", "reasoning", "thinking", "name"):
        if isinstance(turn.get(name), str):
            yield name, turn[name]
    for call in turn.get("tool_calls") or ():
        yield "tool_calls", function_name(call)


def function_name(tool: Any) -> str:
    """Return the name of a function that is offered or called, or "" where it has none."""
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(inner.get("name") or "") if isinstance(inner, Mapping) else str(inner)


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    given = next((turn[name] for name in ("role", "from") if turn.get(name) is not None), None)
    if not isinstance(given, str):
        raise Unusable("a message without a role")
    role = _ROLES.get(given.casefold())
    if role is None:
        named = f" {given!r}" if _NAME.fullmatch(given) else ""
        raise Unusable(f"a message of the unknown role{named}")
    content = next((turn[name] for name in ("content", "value") if turn.get(name) is not None), None)
    others = {name: value for name, value in turn.items() if name not in _LAYOUT and value is not None}
    if others.get("tool_calls"):
        others["tool_calls"] = _calls(others["tool_calls"])
    if given.casefold() == "function_call":
        called = _json(content) if isinstance(content, str) else content
        calls = _calls(called if isinstance(called, list) else [called])
        content, others["tool_calls"] = "", [{"type": "function", "function": call} for call in calls]
    made = {"role": role} | ({} if content is None else {"content": _text(content)}) | others
    if content is None and blank((made,)):
        raise Unusable("a message without text")
    return made


def _calls(value: Any) -> list[Any]:
    calls = _json(value) if isinstance(value, str) else value
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise Unusable("a function call that cannot be read")
    return [_without_nulls(call) for call in calls]


def _text(content: Any) -> str:
    """Return a content as one text; parts are divided by line breaks, as vLLM does."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else ()
    texts: list[Any] = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise Unusable("a message whose content is no text")
    return "\n".join(texts)


def _json(text: str) -> Any:
    """Return what JSON text holds, or the text itself where it is none."""
    try:
        return json.loads(text) if text.lstrip().startswith(("[", "{")) else text
    except (ValueError, RecursionError):
        return text


def _without_nulls(value: Any) -> Any:
    """Return a value without the fields that are null: Arrow gives every item of a list the fields of all of them."""
    if isinstance(value, Mapping):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list | tuple) else value

"""Which tokens of a response count: those that begin in what the assistant wrote, or in its last turn alone.

Knows turns, characters and where tokens begin; knows no template and no tokenizer. Tokens that do not count, as the
result of a tool, are read like all others and neither scored nor trained.
"""

from collections.abc import Callable, Sequence

import numpy as np

from slpojax.base import Bool, Int
from slpojax.data.sandbox import Span
from slpojax.data.turns import Messages, Unusable

ALL, LAST = "all", "last"
TURNS = (LAST, "assistant", ALL)

REWRITTEN = "the chat template writes earlier turns differently when later ones follow, which data.turns cannot divide"
NOTHING = "no token of a response counts by data.turns"
NOTHING_LEFT = "no token of a response that counts by data.turns is left where it was cut"
OPEN_END = "response whose last token does not count, as it stands outside of the chat template's generation marks"


def own(which: str, dialogue: Messages, answered: int) -> list[int]:
    """Return the numbers of the turns that count, of those behind the prompt's.

    Args:
        which: "assistant" or "last".
        dialogue: prompt and response.
        answered: turns of the prompt.

    Example:
        >>> turns = tuple({"role": role} for role in ("user", "assistant", "tool", "assistant"))
        >>> own("assistant", turns, 1), own("last", turns, 1)
        ([1, 3], [3])
    """
    found = [i for i in range(answered, len(dialogue)) if dialogue[i]["role"] == "assistant"]
    return found[-1:] if which == LAST else found


def by_prefixes(
    whole: str, turns: Sequence[int], begin: Callable[[int], int], upto: Callable[[int], str]
) -> list[Span]:
    """Return the characters of these turns, by what a template writes of the dialogue up to each of them.

    Args:
        whole: the dialogue as it is written.
        turns: their numbers.
        begin: number of a turn -> how many characters of `whole` stand before what the assistant says in it.
        upto: number of a turn -> the dialogue as it is written up to that turn.

    Raises:
        Unusable: the dialogue begins otherwise where later turns follow.
    """
    found = []
    for turn in turns:
        written = upto(turn)
        if not whole.startswith(written):
            raise Unusable(REWRITTEN)
        found.append((begin(turn), len(written)))
    return found


def within(spans: Sequence[Span], start: int, length: int) -> tuple[Span, ...]:
    """Return the parts of spans that lie in the `length` characters from `start` on, counted from there.

    Args:
        spans: rising.
        start: of what is looked at.
        length: of it.

    Returns:
        Rising spans, none empty; those that touch are one.

    Example:
        >>> within([(0, 2), (3, 7), (7, 9), (10, 12)], 4, 6)
        ((0, 5),)
    """
    found: list[Span] = []
    for first, behind in spans:
        a, b = max(first - start, 0), min(behind - start, length)
        if found and a <= found[-1][1]:
            found[-1] = (found[-1][0], max(b, found[-1][1]))
        elif a < b:
            found.append((a, b))
    return tuple(found)


def covers(spans: Sequence[Span], text: str) -> bool:
    """Say whether every character of a text counts."""
    return list(spans) == [(0, len(text))]


def of_tokens(spans: Sequence[Span], begins: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Return which tokens count: those that begin within a span.

    Example:
        >>> of_tokens([(2, 4), (6, 7)], np.array([0, 1, 2, 3, 4, 6])).tolist()
        [False, False, True, True, False, True]
    """
    counted = np.zeros(len(begins), bool)
    for first, behind in spans:
        counted |= (begins >= first) & (begins < behind)
    return counted


def until(counted: Sequence[Bool[np.ndarray, " _"]], lengths: Sequence[int]) -> tuple[Bool[np.ndarray, " _"], ...]:
    """Return which tokens count of responses that are cut to these lengths.

    Raises:
        Unusable: of a response that has tokens left, none of them counts.
    """
    left = tuple(one[:length] for one, length in zip(counted, lengths, strict=True))
    if any(len(one) and not one.any() for one in left):
        raise Unusable(NOTHING_LEFT)
    return left


def require_all(which: str, key: str) -> None:
    """Refuse a setting that changes the tokens of whole responses where not all of their turns count.

    Raises:
        ValueError: names both keys.
    """
    if which != ALL:
        raise ValueError(
            f"data.turns={which!r} lets a part of a response count, and data.{key} adds copies of whole responses that "
            f"have other tokens; set data.turns=all, or leave data.{key} out"
        )

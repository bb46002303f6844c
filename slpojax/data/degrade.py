"""Copies of the responses of pairs, with growing amounts of their key content removed.

Knows token ids; knows no text and no row of a batch. Objectives that predict how much of a response is missing read
them, see `slpojax.objectives.self_supervised`. SPO's paper does not say how it finds key content; here tf-idf does.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from slpojax.data import counting
from slpojax.data.chain import Group, Transform
from slpojax.data.examples import Example, with_candidates
from slpojax.data.options import Setup
from slpojax.data.report import Tally
from slpojax.data.tokenise import Ids

_TOO_SHORT = "response too short for copies with content removed"


def degrade(setup: Setup) -> Transform | None:
    """Add `data.degrade` copies of each response of a pair, first those with the least removed; 0 adds none.

    Raises:
        ValueError: `data.degrade` is negative, the examples are no plain pairs, or not all turns of a response count.
    """
    asked, count = setup.candidates, setup.candidates.degrade
    if count and (count < 0 or asked.candidates != 2 or asked.unpair or asked.pairs or asked.mismatched):
        raise ValueError(
            f"data.degrade={count} adds copies of the two responses of a pair; expected a number from 0, with "
            f"data.candidates=2 (now {asked.candidates}) and without data.unpair, data.pairs, data.accept and "
            "data.mismatched"
        )
    if not count:
        return None
    counting.require_all(setup.encoding.turns, "degrade")
    added = tuple(f"{name}, copy {d + 1}" for d in range(count) for name in ("chosen", "rejected"))

    def transform(items: Iterable[Group], tally: Tally) -> Iterator[Group]:
        groups = list(items)
        keys = iter(key_content([r for group in groups for example in group.examples for r in example.responses]))
        for group in groups:
            made = [add_copies(example, [next(keys) for _ in example.responses], count) for example in group.examples]
            short = sum(not len(copy) for example in made for copy in example.responses[2:4])
            notes = (*group.notes, *(_TOO_SHORT,) * short)
            yield group._replace(examples=tuple(made), added=(*group.added, *added), notes=notes)

    return transform


def key_content(responses: Sequence[Ids]) -> list[Ids]:
    r"""Return for each response the half of its distinct tokens that say most about it, the most telling first.

    .. math:: w = n_y(v) \log \frac{N}{|\{y' : v \in y'\}|}

    with n the occurrences of a token in the response and N the number of responses. Of tokens of one weight the
    smaller id comes first. The last token of a response, its EOS, neither counts nor is removed.

    Args:
        responses: all those of a data set, token ids.

    Example:
        >>> responses = [np.array(ids) for ids in ([5, 6, 6, 7, 8, 0], [5, 7, 9, 9, 0], [5, 7, 0])]
        >>> [ids.tolist() for ids in key_content(responses)]
        [[6, 8], [9], [5]]
    """
    counted = [np.unique(response[:-1], return_counts=True) for response in responses]
    holders = np.bincount(np.concatenate([np.zeros(0, np.int32), *(token for token, _ in counted)]))
    rarity = np.log(len(responses) / np.maximum(holders, 1))
    # Rounded, so that weights that are equal on paper are a tie on every machine.
    weights = [np.round(times * rarity[token], 9) for token, times in counted]
    return [
        token[np.argsort(-weight, kind="stable")][: token.size // 2]
        for (token, _), weight in zip(counted, weights, strict=True)
    ]


def copies(response: Ids, key: Ids, count: int) -> Iterator[Ids]:
    """Yield copies of a response with more and more of its key content removed.

    Copy d of N lacks every occurrence of the first d / N, rounded up, of the key tokens; the last token always stays.
    Where there are fewer key tokens than copies, which could not differ then, all copies are absent: without a token.

    Args:
        response: token ids.
        key: its key tokens, the most telling first, as `key_content` returns them.
        count: N.
    """
    last = np.arange(len(response)) == len(response) - 1
    for d in range(1, count + 1):
        removed = key[: -(-d * key.size // count)]
        yield response[last | ~np.isin(response, removed)] if key.size >= count else response[:0]


def add_copies(example: Example, keys: Sequence[Ids], count: int) -> Example:
    """Return a pair with the copies of both responses: chosen and rejected with the least removed, then with more.

    Args:
        example: of two candidates.
        keys: the key tokens of each response.
        count: copies of each response.

    Returns:
        An example of 2 + 2 * count candidates, the copies with the score 0.
    """
    of_each = [copies(response, key, count) for response, key in zip(example.responses, keys, strict=True)]
    added = tuple(itertools.chain.from_iterable(zip(*of_each, strict=True)))
    return with_candidates(example, added, (0.0,) * len(added))

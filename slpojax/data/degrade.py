"""Copies of the responses of pairs, with growing amounts of their key content removed.

Knows token ids; knows no text and no rows. They are for objectives that tell how much of a response is missing, see
`slpojax.objectives.self_supervised`. How the paper finds key content is not known to us; here it is found by tf-idf.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from slpojax.data.examples import Example
from slpojax.data.tokenise import Ids


def key_content(responses: Sequence[Ids]) -> list[Ids]:
    r"""Return of each response the half of its distinct tokens that tell most of it, the most telling first.

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
        key: see `key_content`.
        count: N.
    """
    last = np.arange(len(response)) == len(response) - 1
    for d in range(1, count + 1):
        removed = key[: -(-d * key.size // count)]
        yield response[last | ~np.isin(response, removed)] if key.size >= count else response[:0]


def add_copies(examples: Sequence[Example], count: int) -> tuple[list[Example], list[int]]:
    """Add to every pair the copies of both responses: chosen and rejected with the least removed, then with more.

    Args:
        examples: of two candidates each.
        count: copies of each response.

    Returns:
        Examples of 2 + 2 * count candidates, the copies with the score 0; and the source rows of the responses that are
        too short for copies, a number once for every such response.
    """
    keys = iter(key_content([response for example in examples for response in example.responses]))
    made: list[Example] = []
    short: list[int] = []
    for example in examples:
        of_pair = [list(copies(response, next(keys), count)) for response in example.responses]
        added = tuple(copy for degree in zip(*of_pair, strict=True) for copy in degree)
        short += [example.row] * sum(not len(own[0]) for own in of_pair)
        score = (*example.score, *(0.0,) * len(added))
        made.append(example._replace(responses=(*example.responses, *added), score=score))
    return made, short

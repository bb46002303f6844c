"""A trap for what looks for hard negatives: a copy of the preferred response in which two tokens have changed places.

Knows token ids; knows no text and no row of a batch. Almost everything that the copy says is what the preferred one
says, so whoever pushes it down pushes the preferred one down; the noise of MC-PO's paper (Chen et al., Preference
Optimization via Contrastive Divergence, 2025, arXiv 2502.04567, table 2).
"""

import numpy as np

from slpojax.data import counting
from slpojax.data.chain import Group, Transform, each
from slpojax.data.examples import with_candidates
from slpojax.data.options import Setup
from slpojax.data.tokenise import Ids

_ALIKE = "no two different tokens to swap, so that there is no noisy copy"


def swapped(setup: Setup) -> Transform | None:
    """Add to every example, as its last candidate, the noisy copy that `data.swapped` asks for; False adds none.

    Where the response has no two different tokens before its last one, the copy is absent.

    Raises:
        ValueError: `data.swapped` with single or labelled responses, with copies that are degraded, or where not all
            turns of a response count.
    """
    asked = setup.candidates
    if not asked.swapped:
        return None
    if asked.candidates < 2 or asked.unpair or asked.mismatched or asked.degrade:
        raise ValueError(
            "data.swapped adds a noisy copy of the preferred response; expected data.candidates of 2 or more (now "
            f"{asked.candidates}), and neither data.unpair, data.mismatched nor data.degrade"
        )

    counting.require_all(setup.encoding.turns, "swapped")

    def one(group: Group) -> Group:
        made, notes = [], group.notes
        for place, example in enumerate(group.examples):
            copy = swap(example.responses[0], np.random.default_rng([setup.seed, example.row, place, 2]))
            notes += (_ALIKE,) * (not len(copy))
            made.append(with_candidates(example, [copy], [min(example.score)]))
        return group._replace(examples=tuple(made), added=(*group.added, "noisy copy"), notes=notes)

    return each(one)


def swap(response: Ids, rng: np.random.Generator) -> Ids:
    """Return a response with two of its tokens in each other's place; no token where there are no two different ones.

    Args:
        response: token ids; the last one, its EOS, stays.
        rng: draws one of the pairs of places whose tokens differ, all alike.

    Example:
        >>> swap(np.array([5, 6, 0]), np.random.default_rng(0)).tolist()
        [6, 5, 0]
    """
    inner = response[:-1]
    first, second = np.nonzero(np.triu(inner[:, None] != inner[None, :]))
    if not len(first):
        return response[:0]
    drawn = int(rng.integers(len(first)))
    copy = response.copy()
    copy[[first[drawn], second[drawn]]] = response[[second[drawn], first[drawn]]]
    return copy

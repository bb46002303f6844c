"""The static sizes of the batches of a run: the smallest that hold every one of them.

Knows the lengths of examples and which of them make which batch; knows no token id and no device. Rows whose length is
chosen with their number, for batches that are balanced (see `slpojax.data.orders`), fill over 95% of the cells; rows of
one example each, of a few lengths, for batches of similar examples, some 75%.
"""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Shaped

from slpojax.base import Int, Shapes
from slpojax.data.examples import Examples
from slpojax.data.fitting import NONE, Room, fewest, round_up, search

_MULTIPLE = 8  # S is rounded up to it
_STEP = 32  # a chosen L is a multiple of it: coarser steps leave many groups of rows a tenth empty
_LONGEST = 4  # a chosen L is at most so many times the shortest that holds every example
_SPARED = 0.02  # share of the cells that shorter rows may cost: attention in longer ones costs about as much
_PROGRAMS = 4  # lengths of rows, each with a compiled program, where there is a row for every example
_UNEVEN = 1.04  # a group may hold so many times its share of the scored tokens before another try is made


def plan(
    examples: Examples,
    order: Iterable[Int[np.ndarray, " B"]],
    *,
    row_length: int,
    pack: bool = True,
    multiple_of: int = 1,
    picks: int = 0,
    prompts: bool = False,
) -> Shapes:
    """Find the smallest shapes that hold every batch of a run.

    R is the most rows that any batch needs, rounded up. S is the most scored tokens in any group of rows once the rows
    of every batch are dealt to the groups. T is the longest response, by its tokens that count. A chosen length is a
    multiple of 32.

    Args:
        examples: all examples.
        order: every batch of the run, as indices of examples; -1 for a filler.
        row_length: L; 0 for the shortest length, from the longest example up to four times that, with at most 2% more
            cells than the best of them.
        pack: whether a row may hold several examples. Where it may not and `row_length` is 0, L is the longest of up
            to four lengths, of which a batch takes the first that holds it.
        multiple_of: G, devices that split the rows times micro-batches; R is a multiple of it.
        picks: M, where examples hold the first candidate and M picked ones, whichever they are; 0 where they hold all.
        prompts: whether the prompts' tokens are scored, too.

    Raises:
        ValueError: there is no batch, or an example is longer than a row.
    """
    return plan_together(
        [(examples, order)], row_length=row_length, pack=pack, multiple_of=multiple_of, picks=picks, prompts=prompts
    )


def plan_together(
    parts: Sequence[tuple[Examples, Iterable[Int[np.ndarray, " B"]]]],
    *,
    row_length: int,
    pack: bool = True,
    multiple_of: int = 1,
    picks: int = 0,
    prompts: bool = False,
) -> Shapes:
    """Find the smallest shapes that hold every batch of several data sets.

    Args:
        parts: (examples, every batch as indices of examples) of each data set.
        row_length: L, or 0 for the shortest good one.
        pack: whether a row may hold several examples.
        multiple_of: G, devices that split the rows times micro-batches; R is a multiple of it.
        picks: M, where examples hold the first candidate and M picked ones; 0 where they hold all.
        prompts: whether the prompts' tokens are scored, too.

    Raises:
        ValueError: there is no batch, or an example is longer than a row.
    """
    sizes = [_sizes(examples, list(order), row_length, picks, prompts) for examples, order in parts]
    size, scored = (np.concatenate(of_parts) for of_parts in zip(*sizes, strict=True))
    if pack:
        length, rows = _shortest(size, scored, row_length, multiple_of)
        lengths = [(length, _most_scored(size, scored, Room(rows, length, multiple_of)))]
    else:
        rows, needed = round_up(size.shape[1], multiple_of), round_up(size.max(axis=1), _STEP)
        chosen = [row_length] if row_length else _few(needed, _PROGRAMS)
        first = np.searchsorted(chosen, np.minimum(needed, chosen[-1]))  # of the lengths, that holds the batch
        lengths = [
            (length, _most_scored(size[first == i], scored[first == i], Room(rows, length, multiple_of)))
            for i, length in enumerate(chosen)
        ]
    return Shapes(
        examples=size.shape[1],
        candidates=1 + picks if picks else parts[0][0].candidates,
        response=max(int(examples.lengths.counted.max()) for examples, _ in parts),
        rows=rows,
        length=lengths[-1][0],
        scored=max(most for _, most in lengths),
        groups=multiple_of,
        lengths=() if pack else tuple(lengths),
        # One position at least, also where no prompt has a second token: zero says that none is scored.
        prompt=max(1, *(int(examples.lengths.prompt.max()) - 1 for examples, _ in parts)) if prompts else 0,
    )


def of_batch(shapes: Shapes, longest: int) -> Shapes:
    """Return the sizes of a batch by its longest example: of the lengths there are, the first that holds it."""
    fits = [(length, scored) for length, scored in shapes.lengths if length >= longest]
    return shapes._replace(length=fits[0][0], scored=fits[0][1]) if fits else shapes


def reserve(response: Int[np.ndarray, "n K"], picks: int) -> Int[np.ndarray, " n"]:
    """Return the most response tokens that the first candidate and `picks` of the others, repeated or not, hold.

    Rows are laid out by these numbers before anything is picked: examples that shrink may fit worse by best fit, but
    in the places that were reserved for them they fit whatever is picked.

    Example:
        >>> reserve(np.array([[4, 2, 9, 0]]), 2)
        array([22])
    """
    return response[:, 0] + picks * response[:, 1:].max(axis=1, initial=0)


def count_scored(
    prompt: Int[np.ndarray, " n"], response: Shaped[np.ndarray, " n"], *, prompts: bool
) -> Shaped[np.ndarray, " n"]:
    """Return the scored tokens of examples: those of the responses, and of prompts, if they are, all but the first.

    Args:
        prompt: tokens of each.
        response: tokens of its responses together, or how many are expected.
        prompts: whether prompts are scored, too.
    """
    return response + (prompt - 1 if prompts else 0)


def _sizes(
    examples: Examples, order: Sequence[Int[np.ndarray, " B"]], row_length: int, picks: int, prompts: bool
) -> tuple[Int[np.ndarray, "n B"], Int[np.ndarray, "n B"]]:
    """Return the tokens, and the scored ones, of every example of every batch; 0 for a filler."""
    if not order:
        raise ValueError(f"{len(examples)} examples do not fill one batch; lower batch_size")
    of_both = (examples.lengths.response, examples.lengths.counted)
    placed, scored = (reserve(of, picks) if picks else of.sum(axis=1) for of in of_both)
    size = examples.lengths.prompt + placed
    if row_length and size.max() > row_length:
        worst = int(size.argmax())
        raise ValueError(
            f"row {examples.row[worst]}: prompt and responses are {size[worst]} tokens together, more than "
            f"data.row_length={row_length}; raise data.row_length to {size[worst]} or lower data.max_length"
        )
    batches, targets = np.stack(order), count_scored(examples.lengths.prompt, scored, prompts=prompts)
    return np.append(size, 0)[batches], np.append(targets, 0)[batches]


def _most_scored(size: Int[np.ndarray, "n B"], scored: Int[np.ndarray, "n B"], room: Room) -> int:
    """Return S: the most scored tokens in any group of rows, once every batch is laid out, rounded up."""
    even = int(scored.sum(axis=1).max()) / room.groups
    enough = round_up(max(int(scored.max()), int(_UNEVEN * even)), _MULTIPLE)
    return round_up(int(search(size, scored, room, room.rows, enough)[1].max()), _MULTIPLE)


def _few(needed: Int[np.ndarray, " n"], most: int) -> list[int]:
    """Return at most `most` lengths, such that batches of the needed ones take the fewest cells; rising.

    Example:
        >>> _few(np.array([32, 32, 32, 64, 96, 320]), 3)
        [32, 96, 320]
    """
    lengths, counts = (x.tolist() for x in np.unique(needed, return_counts=True))
    before = [0, *itertools.accumulate(counts)]
    best: list[tuple[int, list[int]]] = [(0, []), *[(NONE, [])] * len(lengths)]  # cells of the first i, and how
    for number in range(1, most + 1):
        for i in range(len(lengths), 0, -1):  # downwards: those before i are still of one length fewer
            for j in range(i):
                cells, how = best[j][0] + lengths[i - 1] * (before[i] - before[j]), best[j][1]
                if cells < best[i][0] and len(how) < number:
                    best[i] = cells, [*how, lengths[i - 1]]
    return best[-1][1]


def _shortest(
    size: Int[np.ndarray, "n B"], scored: Int[np.ndarray, "n B"], row_length: int, groups: int
) -> tuple[int, int]:
    """Return (L, R) that hold every batch; L is `row_length` unless that is 0, which stands for a good one."""
    longest = round_up(int(size.max()), _STEP)
    most = int(size.sum(axis=1).max())
    lengths = [row_length] if row_length else range(longest, _LONGEST * longest + 1, _STEP)
    # The fewest cells that a length could do with come first; a length is tried only where it could win.
    floors = sorted((length * round_up(-(-most // length), groups), length) for length in lengths)
    tried: list[tuple[int, int, int]] = []  # L, R and their cells
    enough = NONE
    for cells, length in floors:
        if cells <= enough:
            rows = fewest(size, scored, Room(0, length, groups), enough // length)
            tried.append((length, rows, length * rows))
            enough = min(enough, int((1 + _SPARED) * length * rows))
    return min((length, rows) for length, rows, cells in tried if cells <= enough)

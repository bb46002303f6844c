"""Which examples make which batch, in training and where every example comes once.

Knows the examples' lengths, the seed and the batch size; knows no token, no row and no device, so that the order of a
run is the same on any machine, from any step on. Batches of nearly equal size leave less of fixed shapes empty: see
`slpojax.data.balancing`. Where there is a row for every example, batches of examples of similar length do.
"""

import random
from typing import NamedTuple

import grain
import numpy as np

from slpojax.base import Int
from slpojax.data.balancing import sizes, trade
from slpojax.data.examples import Lengths

KINDS = ("balanced", "shuffled", "by_length", "source", "original")

_SIMILAR = 32  # examples are of similar length where so many tokens, rounded up to a multiple, hold them


class Passes(NamedTuple):
    """How many batches a run takes, and how many examples of its last pass find no full batch."""

    steps: int
    unused: int


def passes(count: int, batch_size: int, *, epochs: float | int = 1, steps: int = 0) -> Passes:
    """Return the length of a run: `steps` if positive, else as many full batches as `epochs` passes hold.

    Passes follow one another without a gap, so a batch may hold the end of one and the beginning of the next; only at
    the very end of the run are examples left over.

    Example:
        >>> passes(100, 64, epochs=2)
        Passes(steps=3, unused=8)
    """
    if steps > 0:
        return Passes(steps, -(steps * batch_size) % count)
    total = round(epochs * count)
    return Passes(total // batch_size, total % batch_size)


def order(
    lengths: Lengths, batch_size: int, *, seed: int, steps: int, kind: str = "balanced"
) -> list[Int[np.ndarray, " B"]]:
    """Return the examples of every batch of a run.

    Args:
        lengths: of the examples.
        batch_size: B.
        seed: decides any order but "source" and "original".
        steps: number of batches; more of them begin with the same ones.
        kind: "balanced", shuffled for every pass, then traded until the batches are nearly equal in tokens;
            "shuffled", for every pass; "by_length", shuffled for every pass, then sorted by length but for 32 tokens,
            and the batches shuffled; "source", as the rows come; "original", that of the original DPO program.

    Raises:
        ValueError: an unknown kind.
    """
    count = len(lengths.prompt)
    # Endless before it is cut: batches run across the ends of passes.
    if kind == "balanced":
        return _balanced(lengths, batch_size, seed, steps)
    if kind == "by_length":
        return _by_length(lengths, batch_size, seed, steps)
    if kind == "shuffled":
        endless = grain.MapDataset.range(count).seed(seed).shuffle().repeat()
    elif kind == "source":
        endless = grain.MapDataset.range(count).repeat()
    elif kind == "original":
        endless = grain.MapDataset.source(sum(original_order(count, -(-steps * batch_size // count)), []))
    else:
        raise ValueError(f"data.order={kind!r}: expected {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    return [np.asarray(batch) for batch in endless.slice(slice(0, steps * batch_size)).batch(batch_size)]


def evaluation_order(lengths: Lengths, batch_size: int, *, kind: str = "balanced") -> list[Int[np.ndarray, " B"]]:
    """Return every example once, in batches of equal size; fillers (-1) come last in each.

    Args:
        lengths: of the examples.
        batch_size: B.
        kind: "balanced", batches of nearly equal tokens; "by_length", the shortest examples first.

    Example:
        >>> evaluation_order(Lengths(np.array([1, 1, 5, 9, 9]), np.ones((5, 2), int)), 3)
        [array([0, 1, 3]), array([ 2,  4, -1])]
    """
    count = len(lengths.prompt)
    sorted_by = {"balanced": np.arange(count), "by_length": sizes(lengths)[0]}[kind]
    listed = np.argsort(sorted_by, kind="stable")
    parts = np.array_split(listed, -(-count // batch_size))
    grid = np.full((len(parts), batch_size), -1)
    for row, part in zip(grid, parts, strict=True):
        row[: len(part)] = part
    return list(trade(lengths, grid, grid < 0)) if kind == "balanced" else list(grid)


def original_order(count: int, epochs: int) -> list[list[int]]:
    """The order of the original DPO program, whatever its seed: every epoch shuffles the last one's order again.

    (Rafailov et al., Direct Preference Optimization, 2023, arXiv 2305.18290; program, `get_batch_iterator`.)

    Example:
        >>> original_order(10, 2)
        [[8, 7, 2, 4, 1, 5, 3, 9, 0, 6], [1, 2, 8, 3, 9, 5, 6, 4, 0, 7]]
    """
    seeds = np.random.RandomState(0).randint(0, 2**32, size=epochs)
    current, orders = list(range(count)), []
    for seed in seeds.tolist():
        random.Random(seed).shuffle(current)
        orders.append(list(current))
    return orders


def _balanced(lengths: Lengths, batch_size: int, seed: int, steps: int) -> list[np.ndarray]:
    """Trade pass by pass: what a pass leaves over begins the next, and stays where it is there."""
    count = len(lengths.prompt)
    typical = np.rint(sizes(lengths).mean(axis=1)).astype(np.int64)  # the next pass fills the last batch up with such
    made: list[np.ndarray] = []
    left = np.zeros(0, np.int64)
    number = 0
    while len(made) < steps:
        # Raw bits are the part of NumPy's generators that never changes from version to version.
        shuffled = np.argsort(np.random.PCG64([seed, number]).random_raw(count), kind="stable")
        taken = np.concatenate([left, shuffled])
        grid = np.full((-(-len(taken) // batch_size), batch_size), -1)
        grid.reshape(-1)[: len(taken)] = taken
        fixed = grid < 0
        fixed.reshape(-1)[: len(left)] = True
        grid = trade(lengths, grid, fixed, typical)
        full = len(taken) // batch_size
        made += list(grid[:full])
        left = grid[full:][grid[full:] >= 0]
        number += 1
    return made[:steps]


def _by_length(lengths: Lengths, batch_size: int, seed: int, steps: int) -> list[np.ndarray]:
    """Sort pass by pass: chance decides what is left over, and it begins the next pass whatever its length."""
    count = len(lengths.prompt)
    similar = -(-sizes(lengths)[0] // _SIMILAR)
    made: list[np.ndarray] = []
    left = np.zeros(0, np.int64)
    number = 0
    while len(made) < steps:
        bits = np.random.PCG64([seed, number])  # raw ones, as above
        taken = np.concatenate([left, np.argsort(bits.random_raw(count), kind="stable")])
        full = len(taken) // batch_size * batch_size
        mixed, rest, left = np.split(taken, [batch_size * bool(len(left) and full), full])
        rest = rest[np.argsort(similar[rest], kind="stable")].reshape(-1, batch_size)
        made += [*mixed.reshape(-1, batch_size), *rest[np.argsort(bits.random_raw(len(rest)), kind="stable")]]
        number += 1
    return made[:steps]

"""Which examples make which batch, in training and where every example is looked at once.

Knows the examples' lengths, the seed and the batch size; knows no token, no row and no device, so that the order of a
run is the same on any machine, from any step on. Batches of nearly equal size leave less of fixed shapes empty: see
`trade`. Where every example has a row of its own, batches of examples of similar length do.
"""

import random
from typing import NamedTuple

import grain
import numpy as np

from slpojax.base import Bool, Int
from slpojax.data.examples import Lengths

KINDS = ("balanced", "shuffled", "by_length", "source", "original")

_ROUNDS = 20  # trades that a batch may make
_LOOKED_AT = 24  # examples of a batch that are looked at for one trade
_SIMILAR = 32  # examples are of similar length where so many tokens, rounded up to a multiple, hold them
_NEVER = 1e9  # a size that no trade can make up for, in tokens


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
        kind: "balanced", shuffled anew for every pass, then traded until the batches are nearly equal in tokens, see
            `trade`; "shuffled", anew for every pass; "by_length", shuffled anew, then sorted by length but for
            32 tokens, and the batches shuffled; "source", as the rows come; "original", see `original_order`.

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
    sorted_by = {"balanced": np.arange(count), "by_length": _sizes(lengths)[0]}[kind]
    listed = np.argsort(sorted_by, kind="stable")
    parts = np.array_split(listed, -(-count // batch_size))
    grid = np.full((len(parts), batch_size), -1)
    for row, part in zip(grid, parts, strict=True):
        row[: len(part)] = part
    return list(trade(lengths, grid, grid < 0)) if kind == "balanced" else list(grid)


def trade(
    lengths: Lengths,
    grid: Int[np.ndarray, "n B"],
    fixed: Bool[np.ndarray, "n B"],
    missing: Int[np.ndarray, "2"] | int = 0,
) -> Int[np.ndarray, "n B"]:
    """Let batches trade examples until their tokens, and the scored ones among them, are nearly equal.

    In every round the batch with the most meets the one with the fewest, the next with the next, and each two trade the
    one pair of examples that brings both closest together. The order of the rounds' criterion changes: all tokens,
    scored ones, their sum, their difference. Integers decide, so every host and machine trades alike.

    Args:
        lengths: of the examples.
        grid: the examples of every batch; -1 for none.
        fixed: places that take no part.
        missing: (all tokens, scored tokens) that a place without an example counts for.

    Returns:
        The grid after the trades.
    """
    grid = grid.copy()
    sizes = _sizes(lengths)
    scale = np.array([[1], [max(1, round(sizes[0].sum() / max(1, sizes[1].sum())))]])  # both count alike
    sizes = scale * np.concatenate([sizes, np.broadcast_to(np.reshape(missing, (-1, 1)), (2, 1))], axis=1)
    pairs, width = len(grid) // 2, min(_LOOKED_AT, grid.shape[1])
    for turn in range(_ROUNDS):
        total = sizes[:, grid].sum(axis=2)
        by = (total[0], total[1], total[0] + total[1], total[0] - total[1])[turn % 4]
        ranked = np.argsort(by, kind="stable")
        few, many = ranked[:pairs], ranked[::-1][:pairs]
        looked_at = np.arange(turn * width, (turn + 1) * width) % grid.shape[1]
        cell = (few[:, None], looked_at), (many[:, None], looked_at)
        small, large = (
            np.where(fixed[at], sign * _NEVER, sizes[:, grid[at]]).astype(np.float32)
            for at, sign in zip(cell, (-1, 1), strict=True)
        )
        apart = (total[:, many] - total[:, few]).astype(np.float32) / 2
        off = np.square(large[0][:, :, None] - small[0][:, None, :] - apart[0][:, None, None])
        off += np.square(large[1][:, :, None] - small[1][:, None, :] - apart[1][:, None, None])
        off = off.reshape(pairs, width * width)
        best = off.argmin(axis=1)
        gain = off[np.arange(pairs), best] < np.square(apart).sum(axis=0)
        few, many, best = few[gain], many[gain], best[gain]
        give, take = (many, looked_at[best // width]), (few, looked_at[best % width])
        grid[give], grid[take] = grid[take], grid[give]
    return grid


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
    typical = np.rint(_sizes(lengths).mean(axis=1)).astype(np.int64)  # the next pass fills the last batch up with such
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
    """Sort pass by pass: who is left over is left to chance, and begins the next pass whatever its length."""
    count = len(lengths.prompt)
    similar = -(-_sizes(lengths)[0] // _SIMILAR)
    made: list[np.ndarray] = []
    left = np.zeros(0, np.int64)
    number = 0
    while len(made) < steps:
        random = np.random.PCG64([seed, number])  # raw bits, as above
        taken = np.concatenate([left, np.argsort(random.random_raw(count), kind="stable")])
        full = len(taken) // batch_size * batch_size
        mixed, rest, left = np.split(taken, [batch_size * bool(len(left) and full), full])
        rest = rest[np.argsort(similar[rest], kind="stable")].reshape(-1, batch_size)
        made += [*mixed.reshape(-1, batch_size), *rest[np.argsort(random.random_raw(len(rest)), kind="stable")]]
        number += 1
    return made[:steps]


def _sizes(lengths: Lengths) -> Int[np.ndarray, "2 N"]:
    """Return (all tokens, scored tokens) of every example."""
    scored = np.asarray(lengths.response, np.int64).sum(axis=1)
    return np.stack([lengths.prompt + scored, scored])

"""Batches of nearly equal size: batches trade examples until their tokens, and the scored ones, are nearly equal.

Knows the lengths of examples and which batch each is in; knows no token id, no seed and no pass.
"""

import numpy as np

from slpojax.base import Bool, Float, Int
from slpojax.data.examples import Lengths

_ROUNDS = 20  # trades that a batch may make
_WIDTH = 24  # examples of a batch among which one trade chooses
_NEVER = 1e9  # a size that no trade can make up for, in tokens


def sizes(lengths: Lengths) -> Int[np.ndarray, "2 N"]:
    """Return (all tokens, scored tokens) of every example."""
    placed, scored = (np.asarray(of, np.int64).sum(axis=1) for of in (lengths.response, lengths.counted))
    return np.stack([lengths.prompt + placed, scored])


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
    size = sizes(lengths)
    scale = np.array([[1], [max(1, round(size[0].sum() / max(1, size[1].sum())))]])  # both count alike
    size = scale * np.concatenate([size, np.broadcast_to(np.reshape(missing, (-1, 1)), (2, 1))], axis=1)
    pairs, width = len(grid) // 2, min(_WIDTH, grid.shape[1])
    for turn in range(_ROUNDS):
        total = size[:, grid].sum(axis=2)
        by = (total[0], total[1], total[0] + total[1], total[0] - total[1])[turn % 4]
        ranked = np.argsort(by, kind="stable")
        few, many = ranked[:pairs], ranked[::-1][:pairs]
        places = np.arange(turn * width, (turn + 1) * width) % grid.shape[1]
        small, large = (
            np.where(fixed[at], sign * _NEVER, size[:, grid[at]]).astype(np.float32)
            for at, sign in (((few[:, None], places), -1), ((many[:, None], places), 1))
        )
        surplus = (total[:, many] - total[:, few]).astype(np.float32) / 2
        give, take, gain = _best(large, small, surplus)
        few, many, give, take = few[gain], many[gain], places[give[gain]], places[take[gain]]
        grid[many, give], grid[few, take] = grid[few, take], grid[many, give]
    return grid


def _best(
    large: Float[np.ndarray, "2 m W"], small: Float[np.ndarray, "2 m W"], surplus: Float[np.ndarray, "2 m"]
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """Return, for each pair of batches, the two examples whose trade brings both closest together.

    Args:
        large: (all, scored) tokens of the examples of the larger batch among which the trade chooses.
        small: those of the smaller batch.
        surplus: half of what the larger batch has more than the smaller one.

    Returns:
        The place of the example that the larger batch gives, the place of the one that it takes, and whether the trade
        brings the batches closer than they are.
    """
    off = np.square(large[0][:, :, None] - small[0][:, None, :] - surplus[0][:, None, None])
    off += np.square(large[1][:, :, None] - small[1][:, None, :] - surplus[1][:, None, None])
    off = off.reshape(len(off), large.shape[2] ** 2)
    best = off.argmin(axis=1)
    gain = off[np.arange(len(off)), best] < np.square(surplus).sum(axis=0)
    give, take = np.divmod(best, large.shape[2])
    return give, take, gain

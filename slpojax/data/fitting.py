"""Which row every example of a batch goes to: bin packing by best fit, and rows dealt to groups.

Knows the tokens, and the scored tokens, of examples; knows no token id. Rows and examples are matched by best fit, the
longest first, in several orders where the first one leaves a row too many. The rows are dealt to groups, one for each
device and micro-batch, such that the groups hold equally many scored tokens.
"""

from typing import Any, NamedTuple

import numpy as np

from slpojax.base import Bool, Int, Shapes

NONE = np.iinfo(np.int64).max  # more scored tokens than any group has: the examples do not fit

_HARDEST = 16  # batches that are placed first, as the others seldom need more rows
_TRIES = 64  # orders in which a batch's examples are placed, until one is good enough
_AT_ONCE = 1024  # batches times tries that are placed at once
_DISTURBANCE = 0.5  # of an example's size, at most, in the last try


class Room(NamedTuple):
    """The rows that a batch is laid out in: R, L and G."""

    rows: int
    length: int
    groups: int


def assign(size: Int[np.ndarray, " B"], scored: Int[np.ndarray, " B"], shapes: Shapes) -> Int[np.ndarray, " B"]:
    """Give every example a row, such that no row holds more than L tokens and no group more than S scored ones.

    Larger shapes hold whatever smaller ones do: where the search does not succeed with all the rows, it uses fewer.

    Args:
        size: tokens of each example; 0 for a filler.
        scored: those of them that are scored.
        shapes: R, L, G and S. With R >= B there is a row for every example.

    Raises:
        ValueError: the examples do not fit.
    """
    room = Room(shapes.rows, shapes.length, shapes.groups)
    for used in range(shapes.rows, -(-int(size.sum()) // shapes.length) - 1, -1):
        row, load = search(size[None], scored[None], room, used, shapes.scored)
        if load[0] <= shapes.scored:
            return row[0]
    raise ValueError(f"examples of {size.sum()} tokens, {scored.sum()} of them scored, do not fit {shapes}; plan again")


def fewest(size: Int[np.ndarray, "n B"], scored: Int[np.ndarray, "n B"], room: Room, most: int) -> int:
    """Return R: the fewest rows of a length that hold every batch, rounded up; above `most`, it may be too few."""
    total = size.sum(axis=1)
    rows = round_up(max(1, -(-int(total.max()) // room.length)), room.groups)
    hardest = np.argsort(-total, kind="stable")
    for batches in (hardest[:_HARDEST], hardest[_HARDEST:]):
        while rows <= most and batches.size:
            of_rows = room._replace(rows=rows)
            failed = search(size[batches], scored[batches], of_rows, rows, NONE - 1)[1] == NONE
            batches = batches[failed]
            rows += room.groups * bool(batches.size)
    return rows


def search(
    size: Int[np.ndarray, "n B"], scored: Int[np.ndarray, "n B"], room: Room, used: int, enough: int
) -> tuple[Int[np.ndarray, "n B"], Int[np.ndarray, " n"]]:
    """Give every example of every batch a row, such that the fullest group of rows has few scored tokens.

    Examples are placed one after the other, the longest first, into the fullest row that takes them, or, in every
    second try, into the one that stays emptiest: whose share of the batch's tokens or of its scored ones, whichever is
    larger, is the smallest then. Where that is not good enough, the order is disturbed, more and more; the best try
    counts.

    Args:
        size: tokens of each example, 0 for a filler.
        scored: those of them that are scored.
        room: R, L and G.
        used: rows that may be used; with B of them there is a row for every example.
        enough: most scored tokens in a group that end the search of a batch.

    Returns:
        The row of every example, and the scored tokens in the fullest group of rows of every batch: `NONE` where the
        examples do not fit.
    """
    if used >= size.shape[1]:
        return _alone(size, scored, room)
    row, load = np.zeros(size.shape, np.int64), np.full(len(size), NONE)
    # Raw bits are the part of NumPy's generators that never changes.
    draw = np.random.PCG64(0).random_raw(size.shape[1] * _TRIES).reshape(_TRIES, -1) / 2**64
    factor = 1 + _DISTURBANCE * np.linspace(0, 1, _TRIES)[:, None] * (2 * draw - 1)
    tried = 0
    while tried < _TRIES and (todo := np.nonzero(load > enough)[0]).size:
        # Most batches need one try; those that need more soon get many at once, which takes little longer than one.
        tries = np.arange(tried, min(_TRIES, tried + max(1, min(4 * tried, _AT_ONCE // todo.size))))
        shape = (todo.size, tries.size, size.shape[1])
        tokens, targets = (np.broadcast_to(x[todo, None], shape).reshape(-1, shape[2]) for x in (size, scored))
        longest_first = np.argsort(-size[todo, None] * factor[tries], axis=2, kind="stable").reshape(-1, shape[2])
        placed, fullest = _place(tokens, targets, longest_first, np.tile(tries % 2 == 1, todo.size), room, used)
        best = fullest.reshape(shape[:2]).argmin(axis=1) + np.arange(todo.size) * tries.size
        better = fullest[best] < load[todo]
        row[todo[better]], load[todo[better]] = placed[best[better]], fullest[best[better]]
        tried += tries.size
    return row, load


def _alone(
    size: Int[np.ndarray, "n B"], scored: Int[np.ndarray, "n B"], room: Room
) -> tuple[Int[np.ndarray, "n B"], Int[np.ndarray, " n"]]:
    """Give every example a row without another one; return what `search` does."""
    load = np.zeros((len(size), room.rows), np.int64)
    load[:, : size.shape[1]] = scored
    place, fullest = _deal(load, room.groups)
    return place[:, : size.shape[1]], np.where(size.max(axis=1) > room.length, NONE, fullest)


def _place(
    size: Int[np.ndarray, "m B"],
    scored: Int[np.ndarray, "m B"],
    order: Int[np.ndarray, "m B"],
    level: Bool[np.ndarray, " m"],
    room: Room,
    used: int,
) -> tuple[Int[np.ndarray, "m B"], Int[np.ndarray, " m"]]:
    """Place the examples of m tries one after the other; return what `search` does.

    Args:
        size: tokens of each example.
        scored: those of them that are scored.
        order: in which the examples of a try are placed.
        level: whether a try takes the row that stays emptiest, not the fullest one.
        room: R, L and G.
        used: rows that may be used.
    """
    free, load = np.full((len(size), used), room.length), np.zeros((len(size), room.rows), np.int64)
    row, batch, fits = np.zeros(size.shape, np.int64), np.arange(len(size)), np.ones(len(size), bool)
    all_tokens, all_scored = size.sum(axis=1)[:, None], scored.sum(axis=1)[:, None]
    for i in order.T:
        tokens, rank = size[batch, i], free
        if level.any():  # shares times all_tokens * all_scored: integers decide, on every machine alike
            of_scored = (load[:, :used] + scored[batch, i][:, None]) * all_tokens
            of_tokens = (room.length - free + tokens[:, None]) * all_scored
            rank = np.where(level[:, None], np.maximum(of_scored, of_tokens), free)
        best = np.where(free >= tokens[:, None], rank, NONE).argmin(axis=1)
        fits &= free[batch, best] >= tokens
        free[batch, best] -= tokens
        load[batch, best] += scored[batch, i]
        row[batch, i] = best
    place, fullest = _deal(load, room.groups)
    return np.take_along_axis(place, row, axis=1), np.where(fits, fullest, NONE)


def _deal(load: Int[np.ndarray, "n R"], groups: int) -> tuple[Int[np.ndarray, "n R"], Int[np.ndarray, " n"]]:
    """Deal rows to groups, the fullest first, back and forth; return where each goes, and the fullest group's load."""
    ranked = np.argsort(-load, axis=1, kind="stable")
    turn, seat = np.divmod(np.arange(load.shape[1]), groups)
    seat = np.where(turn % 2, groups - 1 - seat, seat)
    place, dealt = np.empty_like(load), np.empty_like(load)
    where = np.broadcast_to(seat * (load.shape[1] // groups) + turn, load.shape)
    np.put_along_axis(place, ranked, where, axis=1)
    np.put_along_axis(dealt, place, load, axis=1)
    return place, dealt.reshape(len(load), groups, -1).sum(axis=2).max(axis=1)


def round_up(number: Any, multiple: int) -> Any:
    """Return the smallest multiple that is no smaller, of a number or of each in an array."""
    return -(-number // multiple) * multiple

"""Examples to rows: a prompt once, its responses as branches, several examples a row, the same shapes all run long.

Knows lengths and token ids; knows no order of examples and no device. A row holds whole examples, each as one piece:

    example   1 1 1 1 1 1 1 1 1   2 2 2 2 2 2   0 0
    branch    0 0 0 0 1 1 1 2 2   0 0 1 1 1 2   0 0
    position  0 1 2 3 4 5 6 4 5   0 1 2 3 4 2   0 0

Rows and examples are matched by best fit, the longest first, in several orders where the first one leaves a row too
many. The rows are dealt to groups, one for each device and micro-batch, such that the groups hold equally many scored
tokens. Rows whose length is chosen with their number, for batches that are balanced (see `slpojax.data.orders`), fill
over 95% of the cells; rows of one example each, of a few lengths, for batches of similar examples, some 75%.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Shaped

from slpojax.base import ABSENT, Batch, Int, Logps, Rows, Scored, Shapes
from slpojax.data.examples import Example, Examples

LogProbs: TypeAlias = Sequence[tuple[Sequence[Any], Sequence[Any]]]  # an example's log-probs: K arrays token, K other

_MULTIPLE = 8  # S is rounded up to it
_STEP = 32  # a chosen L is a multiple of it: coarser steps leave many groups of rows a tenth empty
_LONGEST = 4  # a chosen L is at most so many times the shortest that holds every example
_SPARED = 0.02  # share of the cells that shorter rows may cost: attention in longer ones costs about as much
_PROGRAMS = 4  # lengths of rows, each with a program of its own, where every example has a row to itself
_HARDEST = 16  # batches that are placed first, as the others seldom need more rows
_TRIES = 64  # orders in which a batch's examples are placed, until one is good enough
_UNEVEN = 1.04  # a group may hold so many times its share of the scored tokens before another try is made
_AT_ONCE = 1024  # batches times tries that are placed at once
_DISTURBANCE = 0.5  # of an example's size, at most, in the last try
_NONE = np.iinfo(np.int64).max


class _Room(NamedTuple):
    """What a batch is laid out in: R, L and G."""

    rows: int
    length: int
    groups: int


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
    of every batch are dealt to the groups. T is the longest response. A chosen length is a multiple of 32.

    Args:
        examples: all examples.
        order: every batch of the run, as indices of examples; -1 for a filler.
        row_length: L; 0 for the shortest length, from the longest example up to four times that, with at most 2% more
            cells than the best of them.
        pack: False gives every example a row of its own; with `row_length` 0, L is the longest of up to four lengths,
            of which a batch takes the first that holds it.
        multiple_of: G, devices that split the rows times micro-batches; R is a multiple of it.
        picks: M, where examples hold the first candidate and M picked ones, see `reserve`; 0 where they hold all.
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
    """Find the smallest shapes that hold every batch of several data sets, (examples, order) each; see `plan`."""
    sizes = [_sizes(examples, list(order), row_length, picks, prompts) for examples, order in parts]
    size, scored = (np.concatenate(of_parts) for of_parts in zip(*sizes, strict=True))
    if pack:
        length, rows = _shortest(size, scored, row_length, multiple_of)
        lengths = [(length, _most_scored(size, scored, _Room(rows, length, multiple_of)))]
    else:
        rows, needed = _round_up(size.shape[1], multiple_of), _round_up(size.max(axis=1), _STEP)
        chosen = [row_length] if row_length else _few(needed, _PROGRAMS)
        first = np.searchsorted(chosen, np.minimum(needed, chosen[-1]))  # of the lengths, that holds the batch
        lengths = [
            (length, _most_scored(size[first == i], scored[first == i], _Room(rows, length, multiple_of)))
            for i, length in enumerate(chosen)
        ]
    return Shapes(
        examples=size.shape[1],
        candidates=1 + picks if picks else parts[0][0].candidates,
        response=max(int(examples.lengths.response.max()) for examples, _ in parts),
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


def assign(size: Int[np.ndarray, " B"], scored: Int[np.ndarray, " B"], shapes: Shapes) -> Int[np.ndarray, " B"]:
    """Give every example a row, such that no row holds more than L tokens and no group more than S scored ones.

    Larger shapes hold whatever smaller ones do: where the search does not succeed with all the rows, it uses fewer.

    Args:
        size: tokens of each example; 0 for a filler.
        scored: those of them that are scored.
        shapes: R, L, G and S. With R >= B every example gets a row of its own.

    Raises:
        ValueError: the examples do not fit.
    """
    room = _Room(shapes.rows, shapes.length, shapes.groups)
    for used in range(shapes.rows, -(-int(size.sum()) // shapes.length) - 1, -1):
        row, load = _search(size[None], scored[None], room, used, shapes.scored)
        if load[0] <= shapes.scored:
            return row[0]
    raise ValueError(f"examples of {size.sum()} tokens, {scored.sum()} of them scored, do not fit {shapes}; plan again")


def pack(
    listed: Sequence[Example],
    shapes: Shapes,
    index: Int[np.ndarray, " n"] | None = None,
    ref: LogProbs | None = None,
    previous: LogProbs | None = None,
    reserved: Int[np.ndarray, " n"] | None = None,
) -> Batch:
    """Lay examples out in rows.

    Args:
        listed: at most B examples; fillers without a token stand for those that are missing.
        shapes: as planned; with P the prompts' tokens are scored, too.
        index: the number of each example in its data set; by default 0, 1, ...
        ref: the reference's log-probs of each of `listed`, or None.
        previous: the same of a second frozen model.
        reserved: response tokens by which each example gets its place, as planned with `picks`; None for its own.

    Returns:
        A batch of NumPy arrays, of all rows.

    Raises:
        ValueError: the examples do not fit the shapes.
    """
    count, b, k, t = len(listed), shapes.examples, shapes.candidates, shapes.response
    response = np.array([[len(r) for r in example.responses] for example in listed], np.int64).reshape(-1, k)
    prompt = np.array([len(example.prompt) for example in listed], np.int64)
    if count > b or response.max(initial=0) > t:
        raise ValueError(
            f"{count} examples with responses of up to {response.max()} tokens do not fit {shapes}; plan again"
        )
    if shapes.prompt and prompt.max(initial=0) > shapes.prompt + 1:
        raise ValueError(f"prompts of up to {prompt.max()} tokens do not fit {shapes}; plan again")
    size, scored = prompt + response.sum(axis=1), response.sum(axis=1)
    reserved = scored if reserved is None else reserved
    shapes = of_batch(shapes, int((prompt + reserved).max(initial=0)))
    if (scored > reserved).any():
        raise ValueError(f"examples of {scored.tolist()} response tokens do not fit the {reserved.tolist()} reserved")
    targets = count_scored(prompt, reserved, prompts=shapes.prompt > 0)
    row = assign(_fill((b,), prompt + reserved, 0, np.int64), _fill((b,), targets, 0, np.int64), shapes)[:count]

    # From here on in the order of the rows: `o` is an example's place in the batch, a piece is a prompt or a response.
    o = np.argsort(row, kind="stable")
    first = np.searchsorted(row[o], row[o])  # of the examples, the first one in the same row
    start = _before(size[o])
    corner = row[o] * shapes.length + start - start[first]  # the example's first cell, in flattened [R, L]
    length = np.concatenate([prompt[:, None], response], axis=1)[o]  # [n, K + 1]
    piece = np.repeat(np.arange(length.size), length.reshape(-1))
    within = np.arange(piece.size) - _before(length.reshape(-1))[piece]
    example, branch = piece // (k + 1), piece % (k + 1)
    cell = np.repeat(corner - start, size[o]) + np.arange(piece.size)
    token = np.concatenate([p for i in o for p in (listed[i].prompt, *listed[i].responses)] or [np.zeros(0, np.int32)])

    def rows(values: np.ndarray) -> np.ndarray:
        return _scatter(shapes.rows, shapes.length, cell, values, 0)

    of_response = branch > 0
    s = of_response | (within > 0) if shapes.prompt else of_response
    rows_of_group = shapes.rows // shapes.groups
    predictor = np.where(within > 0, cell - 1, corner[example] + prompt[o][example] - 1)[s]
    of_prompt = b * k * t + o[example] * shapes.prompt + within - 1
    slot = np.where(of_response, (o[example] * k + branch - 1) * t + within, of_prompt)[s]
    group = row[o][example][s] // rows_of_group
    rank = np.arange(group.size) - np.searchsorted(group, group)

    def scores(values: np.ndarray, absent: int = 0) -> np.ndarray:
        return _scatter(shapes.groups, shapes.scored, group * shapes.scored + rank, values, absent)

    return Batch(
        rows=Rows(
            token=rows(token),
            position=rows(within + np.where(of_response, prompt[o][example], 0)),
            example=rows(example - first[example] + 1),
            branch=rows(branch),
        ),
        scored=Scored(
            source=scores(predictor % (rows_of_group * shapes.length)),
            target=scores(token[s]),
            slot=scores(slot, b * (k * t + shapes.prompt)),
        ),
        length=_fill((b, k), response, 0, np.int32),
        score=_fill((b, k), np.array([e.score for e in listed], np.float32).reshape(-1, k), 0, np.float32),
        label=_fill((b,), np.array([e.label for e in listed], np.float32), 0, np.float32),
        weight=_fill((b,), np.array([e.weight for e in listed], np.float32), 1, np.float32),
        index=_fill((b,), np.arange(count) if index is None else index, -1, np.int32),
        ref=None if ref is None else _logps(ref, response, shapes),
        previous=None if previous is None else _logps(previous, response, shapes),
    )


def _logps(columns: LogProbs, response: Int[np.ndarray, "n K"], shapes: Shapes) -> Logps:
    b, k, t = shapes.examples, shapes.candidates, shapes.response
    length = _fill((b, k), response, 0, np.int32)
    there = np.arange(t) < length[:, :, None]
    token, other = np.zeros((b, k, t), np.float32), np.full((b, k, t), ABSENT, np.float32)
    for part, array in enumerate((token, other)):
        array[there] = np.concatenate([values for example in columns for values in example[part]])
    return Logps(token, other, length)


def _sizes(
    examples: Examples, order: Sequence[Int[np.ndarray, " B"]], row_length: int, picks: int, prompts: bool
) -> tuple[Int[np.ndarray, "n B"], Int[np.ndarray, "n B"]]:
    """Return the tokens, and the scored ones, of every example of every batch; 0 for a filler."""
    if not order:
        raise ValueError(f"{len(examples)} examples do not fill one batch; lower batch_size")
    response = examples.lengths.response
    scored = reserve(response, picks) if picks else response.sum(axis=1)
    size = examples.lengths.prompt + scored
    if row_length and size.max() > row_length:
        worst = int(size.argmax())
        raise ValueError(
            f"row {examples.row[worst]}: prompt and responses are {size[worst]} tokens together, more than "
            f"data.row_length={row_length}; raise data.row_length to {size[worst]} or lower data.max_length"
        )
    batches, targets = np.stack(order), count_scored(examples.lengths.prompt, scored, prompts=prompts)
    return np.append(size, 0)[batches], np.append(targets, 0)[batches]


def _most_scored(size: Int[np.ndarray, "n B"], scored: Int[np.ndarray, "n B"], room: _Room) -> int:
    """Return S: the most scored tokens in any group of rows, once every batch is laid out, rounded up."""
    even = int(scored.sum(axis=1).max()) / room.groups
    enough = _round_up(max(int(scored.max()), int(_UNEVEN * even)), _MULTIPLE)
    return _round_up(int(_search(size, scored, room, room.rows, enough)[1].max()), _MULTIPLE)


def _few(needed: Int[np.ndarray, " n"], most: int) -> list[int]:
    """Return at most `most` lengths, such that batches of the needed ones take the fewest cells; rising.

    Example:
        >>> _few(np.array([32, 32, 32, 64, 96, 320]), 3)
        [32, 96, 320]
    """
    lengths, counts = (x.tolist() for x in np.unique(needed, return_counts=True))
    before = [0, *itertools.accumulate(counts)]
    best: list[tuple[int, list[int]]] = [(0, []), *[(_NONE, [])] * len(lengths)]  # cells of the first i, and how
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
    """Return (L, R) that hold every batch; L is `row_length` unless that is 0, see `plan`."""
    longest = _round_up(int(size.max()), _STEP)
    most = int(size.sum(axis=1).max())
    lengths = [row_length] if row_length else range(longest, _LONGEST * longest + 1, _STEP)
    # The fewest cells that a length could do with come first; a length is tried only where it could win.
    floors = sorted((length * _round_up(-(-most // length), groups), length) for length in lengths)
    found: list[tuple[int, int, int]] = []
    enough = _NONE
    for cells, length in floors:
        if cells <= enough:
            rows = _fewest(size, scored, _Room(0, length, groups), enough // length)
            found.append((length, rows, length * rows))
            enough = min(enough, int((1 + _SPARED) * length * rows))
    return min((length, rows) for length, rows, cells in found if cells <= enough)


def _fewest(size: Int[np.ndarray, "n B"], scored: Int[np.ndarray, "n B"], room: _Room, most: int) -> int:
    """Return R: the fewest rows of a length that hold every batch, rounded up; above `most`, it may be too few."""
    total = size.sum(axis=1)
    rows = _round_up(max(1, -(-int(total.max()) // room.length)), room.groups)
    hardest = np.argsort(-total, kind="stable")
    for batches in (hardest[:_HARDEST], hardest[_HARDEST:]):
        while rows <= most and batches.size:
            of_rows = room._replace(rows=rows)
            failed = _search(size[batches], scored[batches], of_rows, rows, _NONE - 1)[1] == _NONE
            batches = batches[failed]
            rows += room.groups * bool(batches.size)
    return rows


def _search(
    size: Int[np.ndarray, "n B"], scored: Int[np.ndarray, "n B"], room: _Room, used: int, enough: int
) -> tuple[Int[np.ndarray, "n B"], Int[np.ndarray, " n"]]:
    """Give every example of every batch a row, and return the most scored tokens in any group of rows of a batch.

    Examples are placed one after the other, the longest first, into the fullest row that takes them, or, in every
    second try, into the one that stays emptiest: whose share of the batch's tokens or of its scored ones, whichever is
    larger, is the smallest then. Where that is not good enough, the order is disturbed, more and more; the best try
    counts.

    Args:
        size: tokens of each example, 0 for a filler.
        scored: those of them that are scored.
        room: R, L and G.
        used: rows that may be used; with B of them, every example gets a row of its own.
        enough: most scored tokens in a group that end the search; `_NONE` comes out where the examples do not fit.
    """
    if used >= size.shape[1]:
        alone = np.zeros((len(size), room.rows), np.int64)
        alone[:, : size.shape[1]] = scored
        place, most = _deal(alone, room.groups)
        return place[:, : size.shape[1]], np.where(size.max(axis=1) > room.length, _NONE, most)
    row, load = np.zeros(size.shape, np.int64), np.full(len(size), _NONE)
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
        placed, found = _place(tokens, targets, longest_first, np.tile(tries % 2 == 1, todo.size), room, used)
        best = found.reshape(shape[:2]).argmin(axis=1) + np.arange(todo.size) * tries.size
        better = found[best] < load[todo]
        row[todo[better]], load[todo[better]] = placed[best[better]], found[best[better]]
        tried += tries.size
    return row, load


def _place(
    size: np.ndarray, scored: np.ndarray, order: np.ndarray, level: np.ndarray, room: _Room, used: int
) -> tuple[np.ndarray, np.ndarray]:
    free, load = np.full((len(size), used), room.length), np.zeros((len(size), room.rows), np.int64)
    row, batch, fits = np.zeros(size.shape, np.int64), np.arange(len(size)), np.ones(len(size), bool)
    all_tokens, all_scored = size.sum(axis=1)[:, None], scored.sum(axis=1)[:, None]
    for i in order.T:
        tokens, rank = size[batch, i], free
        if level.any():  # shares times all_tokens * all_scored: integers decide, on every machine alike
            of_scored = (load[:, :used] + scored[batch, i][:, None]) * all_tokens
            of_tokens = (room.length - free + tokens[:, None]) * all_scored
            rank = np.where(level[:, None], np.maximum(of_scored, of_tokens), free)
        best = np.where(free >= tokens[:, None], rank, _NONE).argmin(axis=1)
        fits &= free[batch, best] >= tokens
        free[batch, best] -= tokens
        load[batch, best] += scored[batch, i]
        row[batch, i] = best
    place, most = _deal(load, room.groups)
    return np.take_along_axis(place, row, axis=1), np.where(fits, most, _NONE)


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


def _scatter(rows: int, width: int, cell: np.ndarray, values: np.ndarray, absent: int) -> np.ndarray:
    flat = np.full(rows * width, absent, np.int32)
    flat[cell] = values
    return flat.reshape(rows, width)


def _fill(shape: tuple[int, ...], values: np.ndarray, absent: int, dtype: type) -> np.ndarray:
    array: np.ndarray = np.full(shape, absent, dtype)
    array[: len(values)] = values
    return array


def _before(lengths: np.ndarray) -> np.ndarray:
    """Return the sum of all lengths before each."""
    return np.cumsum(lengths) - lengths


def _round_up(number: Any, multiple: int) -> Any:
    return -(-number // multiple) * multiple

"""Examples to rows: a prompt once, its responses as branches, several examples a row, the same shapes all run long.

Knows token ids and which row an example goes to; knows no order of examples and no device. A row holds whole examples,
each as one piece:

    example   1 1 1 1 1 1 1 1 1   2 2 2 2 2 2   0 0
    branch    0 0 0 0 1 1 1 2 2   0 0 1 1 1 2   0 0
    position  0 1 2 3 4 5 6 4 5   0 1 2 3 4 2   0 0

Tokens of a response that do not count stand in the row as others do, and later ones see them; of what is scored they
are left out, so that the log-probs of a response are those of its counted tokens, one behind the other.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from slpojax.base import ABSENT, Batch, Bool, Int, Logps, Rows, Scored, Shapes
from slpojax.data import fitting, planning
from slpojax.data.examples import Example, Lengths, which

LogProbs: TypeAlias = Sequence[tuple[Sequence[Any], Sequence[Any]]]  # an example's log-probs: K arrays token, K other


class _Layout(NamedTuple):
    """Where every token of a batch goes, in the order of the rows: n examples, N tokens.

    Attributes:
        order: the examples of the batch, by row.
        row: of each of these.
        first: number, among these, of the first one in the same row.
        last: the cell of each one's last prompt token, in flattened [R, L].
        prompt: tokens of each one's prompt.
        example: number, among these, of each token's example.
        branch: 0 for a token of the prompt, k + 1 for one of candidate k.
        place: of a token in its prompt or response.
        cell: of a token, in flattened [R, L].
        counted: whether a token counts, as prompts' do.
        rank: of a token among those of its prompt or response that count.
    """

    order: Int[np.ndarray, " n"]
    row: Int[np.ndarray, " n"]
    first: Int[np.ndarray, " n"]
    last: Int[np.ndarray, " n"]
    prompt: Int[np.ndarray, " n"]
    example: Int[np.ndarray, " N"]
    branch: Int[np.ndarray, " N"]
    place: Int[np.ndarray, " N"]
    cell: Int[np.ndarray, " N"]
    counted: Bool[np.ndarray, " N"]
    rank: Int[np.ndarray, " N"]


def pack(
    listed: Sequence[Example],
    shapes: Shapes,
    index: Int[np.ndarray, " n"] | None = None,
    ref: LogProbs | None = None,
    previous: LogProbs | None = None,
    reserved: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]] | None = None,
) -> Batch:
    """Lay examples out in rows.

    Args:
        listed: at most B examples; fillers without a token stand for those that are missing.
        shapes: as planned; with P the prompts' tokens are scored, too.
        index: the number of each example in its data set; by default 0, 1, ...
        ref: the reference's log-probs of each of `listed`, or None.
        previous: log-probs of each of `listed` by a second frozen model, or None.
        reserved: (response tokens, those of them that count) by which each example gets its place, as planned with
            `picks`; None for those it has.

    Returns:
        A batch of NumPy arrays, of all rows.

    Raises:
        ValueError: the examples do not fit the shapes.
    """
    b, k = shapes.examples, shapes.candidates
    response = np.array([[len(r) for r in example.responses] for example in listed], np.int64).reshape(-1, k)
    prompt = np.array([len(example.prompt) for example in listed], np.int64)
    counts = response
    if any(example.counted is not None for example in listed):
        counts = np.array([[one.sum() for one in which(example)] for example in listed], np.int64).reshape(-1, k)
    row, shapes = _assign(Lengths(prompt, response, counts), reserved, shapes)
    layout = _lay_out(prompt, response, row, shapes.length, listed if counts is not response else ())
    pieces = [piece for i in layout.order for piece in (listed[i].prompt, *listed[i].responses)]
    token = np.concatenate(pieces or [np.zeros(0, np.int32)])
    return Batch(
        rows=_rows(layout, token, shapes),
        scored=_scored(layout, token, shapes),
        length=_fill((b, k), counts, 0, np.int32),
        score=_fill((b, k), np.array([e.score for e in listed], np.float32).reshape(-1, k), 0, np.float32),
        label=_fill((b,), np.array([e.label for e in listed], np.float32), 0, np.float32),
        weight=_fill((b,), np.array([e.weight for e in listed], np.float32), 1, np.float32),
        index=_fill((b,), np.arange(len(listed)) if index is None else index, -1, np.int32),
        ref=None if ref is None else _logps(ref, counts, shapes),
        previous=None if previous is None else _logps(previous, counts, shapes),
    )


def _assign(
    lengths: Lengths, reserved: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]] | None, shapes: Shapes
) -> tuple[Int[np.ndarray, " n"], Shapes]:
    """Return the row of every example, and the sizes of the batch: of the lengths of rows, the one that it takes.

    Raises:
        ValueError: the examples do not fit.
    """
    prompt, counts = lengths.prompt, lengths.counted
    count, placed, scored = len(prompt), lengths.response.sum(axis=1), counts.sum(axis=1)
    if count > shapes.examples or counts.max(initial=0) > shapes.response:
        raise ValueError(
            f"{count} examples with responses of up to {counts.max()} tokens do not fit {shapes}; plan again"
        )
    if shapes.prompt and prompt.max(initial=0) > shapes.prompt + 1:
        raise ValueError(f"prompts of up to {prompt.max()} tokens do not fit {shapes}; plan again")
    room, most = (placed, scored) if reserved is None else reserved
    if (placed > room).any() or (scored > most).any():
        raise ValueError(f"examples of {placed.tolist()} response tokens do not fit the {room.tolist()} reserved")
    shapes = planning.of_batch(shapes, int((prompt + room).max(initial=0)))
    targets = planning.count_scored(prompt, most, prompts=shapes.prompt > 0)
    size, targets = (_fill((shapes.examples,), x, 0, np.int64) for x in (prompt + room, targets))
    return fitting.assign(size, targets, shapes)[:count], shapes


def _lay_out(
    prompt: Int[np.ndarray, " n"],
    response: Int[np.ndarray, "n K"],
    row: Int[np.ndarray, " n"],
    width: int,
    parts: Sequence[Example] = (),
) -> _Layout:
    """Put the examples of every row one behind the other.

    Args:
        prompt: tokens of each example's prompt.
        response: tokens of each of its responses.
        row: of each example.
        width: L.
        parts: the examples, where some of their tokens do not count.
    """
    order = np.argsort(row, kind="stable")
    length = np.concatenate([prompt[:, None], response], axis=1)[order]  # [n, K + 1], of every prompt and response
    prompt, row, size = prompt[order], row[order], length.sum(axis=1)
    first, start = np.searchsorted(row, row), _before(size)
    corner = row * width + start - start[first]  # each example's first cell
    piece = np.repeat(np.arange(length.size), length.reshape(-1))
    place = np.arange(piece.size) - _before(length.reshape(-1))[piece]
    cell = np.repeat(corner - start, size) + np.arange(piece.size)
    example, branch = np.divmod(piece, length.shape[1])
    counted, rank = np.ones(piece.size, bool), place
    if parts:
        ones = (array for i in order for array in (np.ones(len(parts[i].prompt), bool), *which(parts[i])))
        counted = np.concatenate([*ones])
        before = _before(counted.astype(np.int64))
        rank = before - before[np.flatnonzero(place == 0)[np.cumsum(place == 0) - 1]]
    return _Layout(order, row, first, corner + prompt - 1, prompt, example, branch, place, cell, counted, rank)


def _rows(layout: _Layout, token: Int[np.ndarray, " N"], shapes: Shapes) -> Rows:
    """Return what the model reads."""

    def scatter(values: Int[np.ndarray, " N"]) -> Int[np.ndarray, "R L"]:
        return _scatter(shapes.rows, shapes.length, layout.cell, values, 0)

    example, branch = layout.example, layout.branch
    return Rows(
        token=scatter(token),
        position=scatter(layout.place + np.where(branch > 0, layout.prompt[example], 0)),
        example=scatter(example - layout.first[example] + 1),
        branch=scatter(branch),
    )


def _scored(layout: _Layout, token: Int[np.ndarray, " N"], shapes: Shapes) -> Scored:
    """Return what is scored: the tokens of the responses and, with P, those of the prompts but for the first."""
    b, k, t = shapes.examples, shapes.candidates, shapes.response
    example, branch, place = layout.example, layout.branch, layout.place
    in_batch = layout.order[example]
    of_response = branch > 0
    is_scored = (of_response & layout.counted) | (~of_response & (place > 0) & (shapes.prompt > 0))

    # The last prompt token predicts the first token of every branch.
    predictor = np.where(place > 0, layout.cell - 1, layout.last[example])
    of_prompt = b * k * t + in_batch * shapes.prompt + place - 1
    slot = np.where(of_response, (in_batch * k + branch - 1) * t + layout.rank, of_prompt)

    rows_of_group = shapes.rows // shapes.groups
    group = (layout.row[example] // rows_of_group)[is_scored]
    rank = np.arange(group.size) - np.searchsorted(group, group)  # among the scored tokens of the group

    def scatter(values: Int[np.ndarray, " N"], absent: int = 0) -> Int[np.ndarray, "G S"]:
        return _scatter(shapes.groups, shapes.scored, group * shapes.scored + rank, values[is_scored], absent)

    return Scored(
        source=scatter(predictor % (rows_of_group * shapes.length)),
        target=scatter(token),
        slot=scatter(slot, b * (k * t + shapes.prompt)),
        cell=scatter(layout.cell % (rows_of_group * shapes.length)),
    )


def _logps(columns: LogProbs, counts: Int[np.ndarray, "n K"], shapes: Shapes) -> Logps:
    """Return the log-probs of the tokens of every response that count, [B, K, T]."""
    b, k, t = shapes.examples, shapes.candidates, shapes.response
    length = _fill((b, k), counts, 0, np.int32)
    present = np.arange(t) < length[:, :, None]
    token, other = np.zeros((b, k, t), np.float32), np.full((b, k, t), ABSENT, np.float32)
    for part, array in enumerate((token, other)):
        array[present] = np.concatenate([values for example in columns for values in example[part]])
    return Logps(token, other, length)


def _scatter(rows: int, width: int, cell: np.ndarray, values: np.ndarray, absent: int) -> np.ndarray:
    flat = np.full(rows * width, absent, np.int32)
    flat[cell] = values
    return flat.reshape(rows, width)


def _fill(shape: tuple[int, ...], values: np.ndarray, absent: int, dtype: type) -> np.ndarray:
    array: np.ndarray = np.full(shape, absent, dtype)
    array[: len(values)] = values
    return array


def _before(lengths: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
    """Return the sum of all lengths before each."""
    return np.cumsum(lengths) - lengths

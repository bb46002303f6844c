"""The stream of packed batches, which a run can stop and take up again.

Knows the order of the examples and which share of a batch this process holds; knows no device. Every process packs the
whole batch (a few milliseconds) and takes its share of the rows.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import grain
import jax
import numpy as np

from slpojax.base import Array, Batch, Int, Shapes, Share
from slpojax.data import orders, planning, rows
from slpojax.data.examples import Examples, pick

_WHOLE = Share()


@runtime_checkable
class Columns(Protocol):
    """A frozen model's log-probs of every example: [i] -> (K arrays token, K arrays other)."""

    def __getitem__(self, example: int) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]: ...  # noqa: D105


def batches(
    examples: Examples,
    shapes: Shapes,
    *,
    seed: int,
    steps: int,
    kind: str = "balanced",
    ref: Columns | None = None,
    previous: Columns | None = None,
    share: Share = _WHOLE,
    prefetch: int = 4,
) -> grain.DatasetIterator:
    """Return the stream of training batches; its `get_state()` is a dict for JSON, its `set_state()` takes it up there.

    Args:
        examples: what is trained on.
        shapes: planned for `orders.order` of the same arguments.
        seed: decides the order of the examples.
        steps: number of batches.
        kind: one of `orders.KINDS`: "balanced", "shuffled", "by_length", "source" or "original".
        ref: cached log-probs of the reference, or None.
        previous: cached log-probs of a second frozen model, or None.
        share: the rows that this process holds; R and G are multiples of `share.of`.
        prefetch: batches that a thread packs ahead.

    Returns:
        An iterator of `Batch`, NumPy arrays: this process's share of rows and scored, the whole of everything else.

    Raises:
        ValueError: the rows cannot be shared out like this, or an unknown kind.
    """
    order = orders.order(examples.lengths, shapes.examples, seed=seed, steps=steps, kind=kind)
    return _stream(examples, shapes, order, ref, previous, share, prefetch)


def scan_order(examples: Examples, shapes: Shapes) -> list[Int[np.ndarray, " B"]]:
    """Return batches in which every example comes once, as `orders.evaluation_order` says.

    Packed rows take batches of equal tokens; where there is a row for every example, the shortest come first.
    """
    kind = "by_length" if shapes.lengths else "balanced"
    return orders.evaluation_order(examples.lengths, shapes.examples, kind=kind)


def evaluation_batches(
    examples: Examples,
    shapes: Shapes,
    order: Sequence[Int[np.ndarray, " B"]] | None = None,
    *,
    ref: Columns | None = None,
    previous: Columns | None = None,
    share: Share = _WHOLE,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """Return a stream of every example once, in order; fillers have index -1 and length 0.

    Args:
        examples: what is scored.
        shapes: planned for `scan_order`.
        order: those of its batches that are asked for; None for all.
        ref: cached log-probs of the reference, or None.
        previous: cached log-probs of a second frozen model, or None.
        share: the rows that this process holds; R and G are multiples of `share.of`.
        prefetch: batches that a thread packs ahead.

    Raises:
        ValueError: the rows cannot be shared out like this.
    """
    order = scan_order(examples, shapes) if order is None else order
    return _stream(examples, shapes, order, ref, previous, share, prefetch)


def make_batch(
    examples: Examples,
    shapes: Shapes,
    index: Int[np.ndarray, " B"],
    ref: Columns | None = None,
    previous: Columns | None = None,
) -> Batch:
    """Pack the examples at `index`; -1 stands for a filler and comes last.

    Args:
        examples: all of them.
        shapes: of the batch.
        index: numbers of the examples of the batch.
        ref: cached log-probs of the reference, of all examples, or None.
        previous: cached log-probs of a second frozen model, or None.
    """
    real = [int(i) for i in index if i >= 0]
    of_ref, of_previous = (None if columns is None else [columns[i] for i in real] for columns in (ref, previous))
    return rows.pack([examples[i] for i in real], shapes, np.array(real, np.int32), of_ref, of_previous)


def make_picked(
    examples: Examples,
    shapes: Shapes,
    index: Int[Array, " B"],
    picks: Int[Array, "B P"],
    ref: Columns | None = None,
    previous: Columns | None = None,
    *,
    share: Share = _WHOLE,
) -> Batch:
    """Pack the picked candidates of the examples at `index`: what is trained on after all candidates were scored.

    Args:
        examples: with all their candidates.
        shapes: planned with `picks` = P - 1.
        index: of the batch that was scored; -1 stands for a filler and comes last.
        picks: candidate numbers, 0 first; one may come repeatedly.
        ref: cached log-probs of the reference, of all candidates, or None.
        previous: cached log-probs of a second frozen model, of all candidates, or None.
        share: the rows that this process holds; R and G are multiples of `share.of`.

    Returns:
        A batch of NumPy arrays like those of `batches`, with P candidates.

    Raises:
        ValueError: the rows cannot be shared out like this, or another candidate than 0 comes first.
    """
    _check_share(shapes, share)
    real = np.asarray(index)[np.asarray(index) >= 0]
    lengths, others = examples.lengths, shapes.candidates - 1
    picked = np.asarray(picks)[: len(real)]

    def of_picked(columns: Columns | None) -> rows.LogProbs | None:
        if columns is None:
            return None
        scored = ((*columns[i], chosen) for i, chosen in zip(real.tolist(), picked.tolist(), strict=True))
        return [([token[k] for k in chosen], [other[k] for k in chosen]) for token, other, chosen in scored]

    batch = rows.pack(
        pick([examples[i] for i in real.tolist()], picked),
        shapes,
        real,
        of_picked(ref),
        of_picked(previous),
        (planning.reserve(lengths.response[real], others), planning.reserve(lengths.counted[real], others)),
    )
    return take_share(batch, share)


def take_share(batch: Batch, share: Share) -> Batch:
    """Keep the rows, and the groups of scored tokens, of the parts that a process holds; the rest stays whole.

    Args:
        batch: of all rows.
        share: numbers of the parts, in the order in which their rows are kept, and how many there are.

    Example:
        >>> rows = np.arange(8)[:, None]
        >>> batch = Batch(rows, rows[:4], *[None] * 7)
        >>> [x.ravel().tolist() for x in take_share(batch, Share((1, 3), 4))[:2]]
        [[2, 3, 6, 7], [1, 3]]
    """
    if share.parts == tuple(range(share.of)):
        return batch

    def of_parts(array: np.ndarray) -> np.ndarray:
        parts = np.split(array, share.of)
        return np.concatenate([parts[number] for number in share.parts])

    return batch._replace(rows=jax.tree.map(of_parts, batch.rows), scored=jax.tree.map(of_parts, batch.scored))


def _stream(
    examples: Examples,
    shapes: Shapes,
    order: Sequence[Int[np.ndarray, " B"]],
    ref: Columns | None,
    previous: Columns | None,
    share: Share,
    prefetch: int,
) -> grain.DatasetIterator:
    """Make the batches in order, `prefetch` of them ahead in a thread."""
    _check_share(shapes, share)

    def make(index: np.ndarray) -> Batch:
        return take_share(make_batch(examples, shapes, index, ref, previous), share)

    options = grain.ReadOptions(num_threads=1 if prefetch else 0, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(order).map(make).to_iter_dataset(options))


def _check_share(shapes: Shapes, share: Share) -> None:
    if shapes.rows % share.of or shapes.groups % share.of:
        raise ValueError(
            f"{shapes.rows} rows in {shapes.groups} groups cannot be cut into {share.of} equal parts; plan with "
            f"multiple_of={share.of}"
        )
    if not share.parts or not set(share.parts) <= set(range(share.of)):
        raise ValueError(f"a process holds the parts {share.parts} of {share.of}; expected some of 0 to {share.of - 1}")

"""The stream of packed batches, which a run can stop and take up again.

Knows the order of the examples and this host's share; knows no device. Every host lays out the whole batch (a few
milliseconds) and keeps its own rows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import grain
import jax
import numpy as np

from slpojax.base import WHOLE, Array, Batch, Int, Shapes, Share
from slpojax.data import orders, rows
from slpojax.data.examples import Examples, pick


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
    columns: Columns | None = None,
    previous: Columns | None = None,
    share: Share = WHOLE,
    prefetch: int = 4,
) -> grain.DatasetIterator:
    """Return the stream of training batches; its `get_state()` is a dict for JSON, its `set_state()` takes it up there.

    Args:
        examples: what is trained on.
        shapes: planned for `orders.order` of the same arguments.
        seed: see `orders.order`.
        steps: number of batches.
        kind: see `orders.order`.
        columns: cached log-probs of the reference, or None.
        previous: the same of a second frozen model.
        share: the rows of a batch that this process holds.
        prefetch: batches that a thread packs ahead.

    Returns:
        An iterator of `Batch`, NumPy arrays: this host's part of rows and scored, the whole of everything else.
    """
    _check_hosts(shapes, share.of)

    def make(index: np.ndarray) -> Batch:
        return host_part(make_batch(examples, shapes, index, columns, previous), share)

    order = orders.order(examples.lengths, shapes.examples, seed=seed, steps=steps, kind=kind)
    return _stream(order, make, prefetch)


def scan_order(examples: Examples, shapes: Shapes) -> list[Int[np.ndarray, " B"]]:
    """Return batches in which every example comes once, as `orders.evaluation_order` says.

    Packed rows take batches of equal tokens; where every example has a row of its own, the shortest come first.
    """
    kind = "by_length" if shapes.lengths else "balanced"
    return orders.evaluation_order(examples.lengths, shapes.examples, kind=kind)


def evaluation_batches(
    examples: Examples,
    shapes: Shapes,
    order: Sequence[Int[np.ndarray, " B"]] | None = None,
    *,
    columns: Columns | None = None,
    previous: Columns | None = None,
    share: Share = WHOLE,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """Return a stream of every example once, in order; fillers have index -1 and length 0.

    Args:
        examples: what is scored.
        shapes: planned for `scan_order`.
        order: those of its batches that are asked for; None for all.
        columns: see `batches`.
        previous: see `batches`.
        share: the rows of a batch that this process holds.
        prefetch: see `batches`.
    """
    _check_hosts(shapes, share.of)

    def make(index: np.ndarray) -> Batch:
        return host_part(make_batch(examples, shapes, index, columns, previous), share)

    if order is None:
        order = scan_order(examples, shapes)
    return _stream(order, make, prefetch)


def make_batch(
    examples: Examples,
    shapes: Shapes,
    index: Int[np.ndarray, " B"],
    columns: Columns | None = None,
    previous: Columns | None = None,
) -> Batch:
    """Pack the examples at `index`; -1 stands for a filler and comes last."""
    real = [int(i) for i in index if i >= 0]
    ref, before = (None if given is None else [given[i] for i in real] for given in (columns, previous))
    return rows.pack([examples[i] for i in real], shapes, np.array(real, np.int32), ref, before)


def make_picked(
    examples: Examples,
    shapes: Shapes,
    index: Int[Array, " B"],
    picks: Int[Array, "B P"],
    columns: Columns | None = None,
    previous: Columns | None = None,
    *,
    share: Share = WHOLE,
) -> Batch:
    """Pack the picked candidates of the examples at `index`: what is trained on after all candidates were scored.

    Args:
        examples: with all their candidates.
        shapes: planned with `picks` = P - 1.
        index: of the batch that was scored; -1 stands for a filler and comes last.
        picks: candidate numbers, 0 first; see `examples.pick`.
        columns: see `batches`; of all candidates.
        previous: see `batches`; of all candidates.
        share: the rows of a batch that this process holds.

    Returns:
        A batch of NumPy arrays like those of `batches`, with P candidates.
    """
    _check_hosts(shapes, share.of)
    real = np.asarray(index)[np.asarray(index) >= 0]
    chosen = np.asarray(picks)[: len(real)]

    def of_picked(given: Columns | None) -> rows.LogProbs | None:
        if given is None:
            return None
        columns = ((*given[i], picked) for i, picked in zip(real.tolist(), chosen.tolist(), strict=True))
        return [([token[k] for k in picked], [other[k] for k in picked]) for token, other, picked in columns]

    batch = rows.pack(
        pick([examples[i] for i in real.tolist()], chosen),
        shapes,
        real,
        of_picked(columns),
        of_picked(previous),
        rows.reserve(examples.lengths.response[real], shapes.candidates - 1),
    )
    return host_part(batch, share)


def host_part(batch: Batch, share: Share) -> Batch:
    """Keep the rows of one host: contiguous, in the order of the hosts."""
    if len(share.parts) == share.of:
        return batch

    def part(array: np.ndarray) -> np.ndarray:
        return np.concatenate([np.split(array, share.of)[part] for part in share.parts])

    own = jax.tree.map(part, (batch.rows, batch.scored))
    return batch._replace(rows=own[0], scored=own[1])


def _stream(order: Sequence[np.ndarray], make: Callable[[np.ndarray], Batch], prefetch: int) -> grain.DatasetIterator:
    """Make the batches in order, `prefetch` of them ahead in a thread."""
    options = grain.ReadOptions(num_threads=1 if prefetch else 0, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(order).map(make).to_iter_dataset(options))


def _check_hosts(shapes: Shapes, process_count: int) -> None:
    if shapes.rows % process_count:
        raise ValueError(
            f"{shapes.rows} rows cannot be split over {process_count} hosts; plan with multiple_of={process_count}"
        )

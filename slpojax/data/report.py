"""What became of the source: records read, dropped and changed, tokens, and how full the rows of the batches are.

Knows counts and row numbers; never holds or prints the text of a row.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from slpojax import wording
from slpojax.base import Int, Shapes
from slpojax.data import filling
from slpojax.data.examples import Examples

_SHOWN = 10  # row numbers that a line of the report names
_FIELDS = 20  # fields that it names


class Count(NamedTuple):
    """How often something happened, and in which source rows first."""

    times: int
    rows: tuple[int, ...]


class Tally(NamedTuple):
    """What happened to records while they are read: (reason or note) -> row numbers, a number once for every time.

    `fields` are those that hold something in some record and that no row's parser read.
    `where` returns what a message calls a row, with file and line.
    """

    dropped: dict[str, list[int]]
    noted: dict[str, list[int]]
    fields: set[str]
    where: Callable[[int], str] = "row {}".format

    def drop(self, row: int, reason: str) -> None:
        """Count a record that gives no example."""
        self.dropped[reason].append(row)

    def note(self, row: int, notes: Iterable[str]) -> None:
        """Count what happened to a record that gives an example."""
        for note in notes:
            self.noted[note].append(row)


class Size(NamedTuple):
    """Tokens of a piece of an example."""

    mean: float
    largest: int
    total: int


class Candidates(NamedTuple):
    """How many candidates an example has; `absent` is the share of all places that hold none."""

    mean: float
    fewest: int
    most: int
    absent: float


class Labels(NamedTuple):
    """How many examples of each label there are, and how many batches hold one of the labels alone."""

    desirable: int
    undesirable: int
    alone: int = 0


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of a source.

    Attributes:
        source: what was read, in a line.
        read: records.
        kept: examples.
        dropped: reason -> how many records gave no example for it.
        noted: note -> how often it happened to records that gave one.
        sizes: piece of an example ("prompt", "chosen", ...) -> its tokens.
        candidates: how many an example has.
        labels: how many examples of each there are; None where the data has none.
        special: the special tokens, in a line.
        unread: names of the records' fields that no parser read.
        packing: how full the rows are; None until they are planned.
        added: names of the last candidates, which are no responses of a record to its prompt.
        parts: of a mixture, name of a source -> what became of it.
        uncounted: piece of an example -> how many of its tokens do not count (`data.turns`); none where all do.
    """

    source: str
    read: int
    kept: int
    dropped: Mapping[str, Count]
    noted: Mapping[str, Count]
    sizes: Mapping[str, Size]
    candidates: Candidates
    labels: Labels | None
    special: str
    unread: tuple[str, ...] = ()
    packing: filling.Packing | None = None
    added: tuple[str, ...] = ()
    parts: Mapping[str, "Report"] = dataclasses.field(default_factory=dict)
    uncounted: Mapping[str, int] = dataclasses.field(default_factory=dict)


def tally(where: Callable[[int], str] = "row {}".format) -> Tally:
    """Return empty counts of rows that a message calls as `where` does."""
    return Tally(defaultdict(list), defaultdict(list), set(), where)


def make(
    source: str,
    read: int,
    counts: Tally,
    examples: Examples,
    special: str,
    *,
    added: Sequence[str] = (),
) -> Report:
    """Make the report of what was read.

    Args:
        source: what was read, in a line.
        read: records.
        counts: what happened to them.
        examples: those that they gave.
        special: the special tokens, in a line.
        added: names of the last candidates, which are no responses of a record to its prompt and do not count as its
            candidates.
    """
    prompt, response = examples.lengths.prompt, examples.lengths.response
    context = (response - examples.lengths.counted).sum(axis=0).tolist()
    count = examples.candidates - len(added)
    names = {1: ["response"], 2: ["chosen", "rejected"]}.get(count) or [
        "chosen",
        *(f"candidate {k + 2}" for k in range(count - 1)),
    ]
    names += added
    desirable = int(examples.label.sum())
    return Report(
        source=source,
        read=read,
        kept=len(examples),
        dropped={reason: _count(rows) for reason, rows in counts.dropped.items() if rows},
        noted={note: _count(rows) for note, rows in counts.noted.items() if rows},
        sizes={"prompt": _size(prompt)} | {name: _size(response[:, k]) for k, name in enumerate(names)},
        candidates=_candidates((response[:, :count] > 0).sum(axis=1), count),
        labels=Labels(desirable, len(examples) - desirable) if examples.labelled else None,
        special=special,
        unread=tuple(sorted(counts.fields)),
        added=tuple(added),
        uncounted={name: many for name, many in zip(names, context, strict=True) if many},
    )


def with_packing(
    report: Report, examples: Examples, order: Iterable[Int[np.ndarray, " B"]], shapes: Shapes, *, unused: int = 0
) -> Report:
    """Add how full the rows are, and how many batches lack one of the labels.

    Args:
        report: of `examples`.
        examples: what is packed.
        order: the batches of the run, as indices; -1 for a filler.
        shapes: of every batch.
        unused: examples of the last pass that no full batch is left for.
    """
    order, labels = list(order), report.labels
    if labels:
        alone = sum(np.unique(examples.label[batch[batch >= 0]]).size == 1 for batch in order)
        labels = labels._replace(alone=alone)
    packing = filling.packing(examples, order, shapes, unused=unused)
    return dataclasses.replace(report, packing=packing, labels=labels)


def with_overlap(report: Report, held_out: Examples, trained: Examples) -> Report:
    """Note the held-out examples that are trained on, too: their prompt with their first response.

    Args:
        report: of `held_out`.
        held_out: the examples that are held out.
        trained: those that are trained on.
    """
    known, noted = {_content(trained, i) for i in range(len(trained))}, dict(report.noted)
    for name, indices in held_out.by_source().items():
        rows = [int(held_out.row[i]) for i in indices if _content(held_out, int(i)) in known]
        of = f"of {name} " * bool(name)
        if rows:
            noted[f"{of}trained on, too, so what is measured on them is no held-out number"] = _count(rows)
    return dataclasses.replace(report, noted=noted)


def render(report: Report) -> str:
    """Return the report as lines of text."""
    lines = [line for name, part in report.parts.items() for line in (f"source    {name}", render(part))]
    lines += [f"data      {report.source}", f"rows      {report.read:,} read, {report.kept:,} kept; {report.special}"]
    for title, counts in (("dropped", report.dropped), ("noted", report.noted)):
        for what, (times, numbers) in sorted(counts.items(), key=lambda item: -item[1].times):
            lines.append(
                f"{title:<10}{times:,} {what}: rows {', '.join(map(str, numbers))}"
                f"{', ...' if times > len(numbers) else ''}"
            )
    if report.unread:
        lines.append(f"{'noted':<10}fields not read: {wording.few(report.unread, _FIELDS)}")
    for name, size in report.sizes.items():
        context = report.uncounted.get(name, 0)
        every = f"all {size.total:,}" + f", of which {context:,} do not count (data.turns)" * bool(context)
        lines.append(f"{'tokens':<10}{name}: mean {size.mean:.0f}, longest {size.largest:,}, {every}")
    if report.candidates.most > 2 or report.candidates.absent:
        c = report.candidates
        lines.append(f"responses {c.mean:.2f} an example, {c.fewest} to {c.most}; {c.absent:.1%} of the places absent")
    if report.labels:
        alone = f"; {report.labels.alone:,} batches hold one of them alone: their rewards/margins are 0"
        lines.append(
            f"labels    {report.labels.desirable:,} desirable, {report.labels.undesirable:,} undesirable"
            f"{alone * (report.labels.alone > 0)}"
        )
    if report.packing:
        lines += filling.lines(report.packing)
    return "\n".join(lines)


def as_dict(report: Report) -> dict[str, float | int | str]:
    """Return the numbers of the report under flat names, for a line of metrics."""
    flat: dict[str, float | int | str] = {
        "data/source": report.source,
        "data/read": report.read,
        "data/kept": report.kept,
    }
    flat |= {f"data/dropped/{reason}": count.times for reason, count in report.dropped.items()}
    flat |= {f"data/noted/{note}": count.times for note, count in report.noted.items()}
    flat |= {"data/unread": ", ".join(report.unread)} if report.unread else {}
    for name, size in report.sizes.items():
        flat |= {f"data/tokens/{name}/{key}": value for key, value in size._asdict().items()}
    flat |= {f"data/tokens/{name}/uncounted": many for name, many in report.uncounted.items()}
    flat |= {f"data/candidates/{key}": value for key, value in report.candidates._asdict().items()}
    flat |= {f"data/labels/{key}": value for key, value in (report.labels._asdict() if report.labels else {}).items()}
    for name, part in report.parts.items():
        flat |= {f"data/source/{name}/{key.removeprefix('data/')}": value for key, value in as_dict(part).items()}
    packing = filling.as_dict(report.packing) if report.packing else {}
    return flat | {f"data/packing/{key}": value for key, value in packing.items()}


def _content(examples: Examples, index: int) -> int:
    """Return a hash of the tokens of an example's prompt and first response."""
    start, prompt = int(examples.start[index]), int(examples.lengths.prompt[index])
    end = start + prompt + int(examples.lengths.response[index, 0])
    return hash((prompt, examples.token[start:end].tobytes()))


def _count(numbers: list[int]) -> Count:
    return Count(len(numbers), tuple(sorted(set(numbers)))[:_SHOWN])


def _size(lengths: Int[np.ndarray, " N"]) -> Size:
    present = lengths[lengths > 0]
    return Size(float(present.mean()), int(present.max()), int(present.sum())) if len(present) else Size(0.0, 0, 0)


def _candidates(counts: Int[np.ndarray, " N"], places: int) -> Candidates:
    if not len(counts):
        return Candidates(0.0, 0, 0, 0.0)
    return Candidates(float(counts.mean()), int(counts.min()), int(counts.max()), float(1 - counts.mean() / places))

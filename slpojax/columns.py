"""The log-probs of a frozen model, first of all the reference, computed once and cached on disk.

Knows examples, a function from batches to log-probs, and a folder; knows no objective. The key of the cache is what the
numbers depend on: weights, tokens (and so the tokenizer, the format and the truncation, which are named one by one to
say what changed), dtype and code. Other keys have files of their own; why none can be used is reported.

While the log-probs are computed, parts of them are saved, and a process that is killed loses no more than the last of
them. How files are read and written, and by which host, is in `slpojax.cached`.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from slpojax import cached, data, grid, places
from slpojax.base import Batch, Logps, Shapes
from slpojax.grid import Grid

_BATCHES = 32  # of a part


@dataclasses.dataclass(frozen=True, eq=False)
class Columns:
    """Log-probs of every response of a data set, ragged.

    Attributes:
        token: log p of all response tokens that count, one after the other, in nats.
        other: log(1 - p) of the same.
        start: [N, K + 1] where each response of each example begins; the last column is where the example ends.
    """

    token: np.ndarray
    other: np.ndarray
    start: np.ndarray

    def __getitem__(self, example: int) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """Return (token, other) of one example, each a tuple of K arrays."""
        cuts = self.start[example]
        spans = [slice(a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
        return tuple(self.token[s] for s in spans), tuple(self.other[s] for s in spans)

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.start)


class Part(NamedTuple):
    """One part of the data, with the log-probs of frozen models once they are known.

    Attributes:
        name: "train" or "eval".
        examples: its examples.
        report: what became of the records of its source.
        ref: the reference's log-probs, where they are cached.
        previous: the same of a second frozen model.
    """

    name: str
    examples: data.Examples
    report: data.Report
    ref: Columns | None = None
    previous: Columns | None = None


class Piece(NamedTuple):
    """Log-probs of some examples, in any order.

    Attributes:
        example: [n] their numbers in the data set.
        token: log p of the tokens of their responses, example by example, in nats.
        other: log(1 - p) of the same.
    """

    example: np.ndarray
    token: np.ndarray
    other: np.ndarray


def weights_digest(folder: pathlib.Path) -> str:
    """SHA-256 of config.json and all safetensors files of a model folder."""
    sha = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        state = file.stat()
        sha.update(file.name.encode() + _file_digest(file, state.st_size, state.st_mtime_ns))
    return sha.hexdigest()


@functools.cache
def _file_digest(file: pathlib.Path, size: int, changed: int) -> bytes:
    """Return the digest of a file, read once for as long as its size and time stay."""
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").digest()


def batches(devices: Grid, part: Part, scan: Shapes, order: Sequence[np.ndarray] | None = None) -> Iterator[Batch]:
    """Yield every example of a part once, on the devices.

    Args:
        devices: the grid.
        part: whose examples.
        scan: sizes of the batches.
        order: those of the batches of `data.scan_order` that are asked for; None for all.
    """
    share = devices.share
    for batch in data.evaluation_batches(part.examples, scan, order, ref=part.ref, previous=part.previous, share=share):
        yield grid.put_batch(devices, batch)


def compute(logps: Callable[[Batch], Logps], batches: Iterable[Batch]) -> Iterator[Piece]:
    """Yield the log-probs of batches, each once the next batch is on its way to the devices.

    Args:
        logps: batch -> [B, K, T] log-probs, on every device.
        batches: `Batch.index` tells which examples they hold; fillers (-1) are left out.

    Raises:
        ValueError: a log-prob is not finite.
    """
    for index, got in grid.gathered((batch.index, logps(batch)) for batch in batches):
        real = index >= 0
        there = np.arange(got.token.shape[2]) < got.length[real][..., None]
        piece = Piece(index[real], got.token[real][there], got.other[real][there])
        broken = int(np.sum(~(np.isfinite(piece.token) & np.isfinite(piece.other))))
        if broken:
            raise ValueError(
                f"frozen model: {broken} of {there.sum()} response tokens of a batch have no finite log-prob (examples "
                f"{', '.join(map(str, piece.example[:4]))}, ...); check its weights, or set model.dtype=float32"
            )
        yield piece


def join(pieces: Sequence[Piece], response_lengths: np.ndarray) -> Columns:
    """Put pieces in the order of the data set.

    Args:
        pieces: of all examples together.
        response_lengths: [N, K] tokens of every response that count.

    Raises:
        ValueError: an example is missing.
    """
    example, *values = _concatenate(pieces)
    missing = np.setdiff1d(np.arange(len(response_lengths)), example)
    if len(missing):
        raise ValueError(
            f"frozen model: {len(missing)} of {len(response_lengths)} examples were in no batch, the first one is "
            f"{missing[0]}; the batches must hold every example"
        )
    ends = np.cumsum(response_lengths.reshape(-1)).reshape(response_lengths.shape)
    start = np.concatenate([ends[:, :1] - response_lengths[:, :1], ends], axis=1)
    size = start[example, -1] - start[example, 0]
    at = np.repeat(start[example, 0] - (np.cumsum(size) - size), size) + np.arange(size.sum())
    token, other = (np.empty(int(response_lengths.sum()), np.float32) for _ in values)
    token[at], other[at] = values  # an example that two pieces hold is the later one's
    return Columns(token, other, start)


def load_or_compute(
    folder: places.Path,
    name: str,
    split: str,
    key: dict[str, str],
    response_lengths: np.ndarray,
    make: Callable[[np.ndarray], Iterable[Piece]],
    say: Callable[[str], None],
) -> Columns:
    """Return the columns that `folder` holds under `key`; what it lacks of them is computed, and cached.

    Args:
        folder: where the cache lies.
        name: of the frozen model, "reference" or "previous".
        split: "train" or "eval".
        key: everything that the numbers depend on, by name.
        response_lengths: [N, K] tokens of every response that count.
        make: [N] whether an example is known -> at least the unknown ones, batch by batch.
        say: takes a line that says whether the cache was used, and if not, why.

    Raises:
        ValueError: a log-prob is not finite, or an example is missing.
    """
    entry = cached.Entry(folder, f"{name}.{split}", key)
    known, complete = [_NONE], False
    if jax.process_index() == 0:
        known, complete, report = _known(entry, response_lengths)
        say(f"{name} log-probs ({split}): {report}")
    pieces = [Piece(*cached.from_first_host(_concatenate(known)) or _NONE)]
    done = np.isin(np.arange(len(response_lengths)), pieces[0].example)
    new: list[Piece] = []
    for piece in () if done.all() else make(done):
        new.append(piece)
        if len(new) == _BATCHES:
            pieces.append(_concatenate(new))
            cached.save_part(entry, pieces[-1]._asdict())
            new = []
    columns = join([*pieces, *new], response_lengths)
    if not complete:
        every = Piece(np.arange(len(columns), dtype=np.int32), columns.token, columns.other)
        cached.save(entry, every._asdict())
    return columns


_NONE = Piece(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.float32))


def _concatenate(pieces: Sequence[Piece]) -> Piece:
    return Piece(*(np.concatenate(x) for x in zip(_NONE, *pieces, strict=True)))


def _known(entry: cached.Entry, response_lengths: np.ndarray) -> tuple[list[Piece], bool, str]:
    """Return what is cached of an entry, whether that is all of it, and what there is to say about it."""
    stored = cached.load(entry)
    if stored.whole is not None and (whole := _piece(stored.whole, response_lengths)):
        return [whole], True, f"read from {entry.folder}"
    found = {path: _piece(part, response_lengths) for path, part in stored.parts.items()}
    pieces = [piece for piece in found.values() if piece]
    report = ["computing"]
    if pieces:
        many = len(np.unique(_concatenate(pieces).example))
        report.append(f"{many} of {len(response_lengths)} examples are cached from a run that was stopped")
    unusable = [cached.file(entry)] * (stored.whole is not None) + [path for path, piece in found.items() if not piece]
    report += [stored.reason] if stored.reason else []
    report += [f"not of these examples, and computed anew: {', '.join(map(str, unusable))}"] if unusable else []
    return pieces, False, "; ".join(report)


def _piece(arrays: cached.Arrays, response_lengths: np.ndarray) -> Piece | None:
    """Return the arrays of a file as a piece; None where they are not one of examples of these lengths."""
    if arrays.keys() != set(Piece._fields):
        return None
    piece = Piece(**arrays)
    if [x.dtype for x in piece] != [x.dtype for x in _NONE] or any(x.ndim != 1 for x in piece):
        return None
    if not np.all((piece.example >= 0) & (piece.example < len(response_lengths))):
        return None
    tokens = int(response_lengths[piece.example].sum())
    fits = piece.token.shape == piece.other.shape == (tokens,) and all(np.isfinite(x).all() for x in piece[1:])
    return piece if fits else None

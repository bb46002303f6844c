"""Tokenised examples: one flat array and where each piece begins.

Knows token ids; knows no text, no tokenizer and no row of a batch.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from slpojax.base import Bool, Float, Int


class Example(NamedTuple):
    """One prompt with its candidates, the preferred one first.

    Attributes:
        prompt: token ids, at least one.
        responses: token ids of each candidate, EOS included; none where a candidate is absent.
        score: of each candidate, higher is better; 0 where the data has none.
        row: the number of the source record.
        label: 1 where the first candidate is desirable, 0 where it is not; 1 where the data has none.
        weight: of the example in the loss.
        source: the number of its source in a mixture; 0 where there is one source alone.
        counted: of each candidate, which of its tokens count; None where all of all of them do. The others are read,
            as what stands before later ones, and not scored.
    """

    prompt: Int[np.ndarray, " _"]
    responses: tuple[Int[np.ndarray, " _"], ...]
    score: tuple[float, ...]
    row: int
    label: float = 1.0
    weight: float = 1.0
    source: int = 0
    counted: tuple[Bool[np.ndarray, " _"], ...] | None = None


class Lengths(NamedTuple):
    """Sizes in tokens.

    Attributes:
        prompt: of every prompt.
        response: of every response.
        part: tokens of every response that count; None where all do.
    """

    prompt: Int[np.ndarray, " N"]
    response: Int[np.ndarray, "N K"]
    part: Int[np.ndarray, "N K"] | None = None

    @property
    def counted(self) -> Int[np.ndarray, "N K"]:
        """Tokens of every response that count: what is scored of it."""
        return self.response if self.part is None else self.part


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Many examples of K candidates each, immutable.

    Attributes:
        token: the prompt and responses of the first example, then of the second, ...
        start: where each example begins in `token`.
        lengths: of every piece.
        score: of every candidate, higher is better; 0 where the data has none, or the candidate is absent.
        row: the number of each one's source record.
        label: 1 where the first candidate is desirable, 0 where it is not; 1 where the data has none.
        labelled: whether the data has labels.
        weight: of each example in the loss.
        source: of each the number of its source in `names`; 0 where there are no names.
        names: of the sources of a mixture; () where there is one source alone.
        counted: of each of `token`, whether it counts, as prompts' do; None where all do.
    """

    token: Int[np.ndarray, " tokens"]
    start: Int[np.ndarray, " N"]
    lengths: Lengths
    score: Float[np.ndarray, "N K"]
    row: Int[np.ndarray, " N"]
    label: Float[np.ndarray, " N"]
    labelled: bool
    weight: Float[np.ndarray, " N"]
    source: Int[np.ndarray, " N"]
    names: tuple[str, ...] = ()
    counted: Bool[np.ndarray, " tokens"] | None = None

    def __len__(self) -> int:
        return len(self.row)

    @property
    def candidates(self) -> int:
        """K."""
        return self.score.shape[1]

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index = int(index) % len(self)
        ends = self.start[index] + np.cumsum([0, self.lengths.prompt[index], *self.lengths.response[index]])
        pieces = [slice(a, b) for a, b in itertools.pairwise(ends)]
        prompt, *responses = (self.token[piece] for piece in pieces)
        score, label = tuple(self.score[index].tolist()), float(self.label[index])
        row, weight, source = int(self.row[index]), float(self.weight[index]), int(self.source[index])
        counted = None if self.counted is None else tuple(self.counted[piece] for piece in pieces[1:])
        return Example(prompt, tuple(responses), score, row, label, weight, source, counted)

    def take(self, indices: Sequence[int] | Int[np.ndarray, " n"]) -> "Examples":
        """Return the examples at `indices`, in that order."""
        listed = [self[int(i)] for i in indices]
        return build(listed, candidates=self.candidates, labelled=self.labelled, names=self.names)

    def places(self) -> list[int] | list[str]:
        """Return what a message calls the source record of each example: its row, in a mixture "7 of NAME"."""
        if not self.names:
            return self.row.tolist()
        return [f"{row} of {self.names[k]}" for row, k in zip(self.row.tolist(), self.source.tolist(), strict=True)]

    def by_source(self) -> dict[str, Int[np.ndarray, " _"]]:
        """Return the numbers of the examples of each source of a mixture; all under "" where there is one alone."""
        if not self.names:
            return {"": np.arange(len(self))}
        return {name: np.flatnonzero(self.source == k) for k, name in enumerate(self.names)}

    def digest(self) -> str:
        """SHA-256 of all but row numbers, sources and weights: equal digests mean equal numbers out of any model."""
        sha, lengths = hashlib.sha256(), (self.lengths.prompt, self.lengths.response)
        parts = () if self.counted is None else (self.counted,)
        for array in (self.token, *lengths, self.score, self.label, *parts):
            sha.update(f"{array.dtype} {array.shape}".encode())
            sha.update(np.ascontiguousarray(array).data)
        return sha.hexdigest()


def pick(listed: Sequence[Example], picks: Int[np.ndarray, "n P"]) -> list[Example]:
    """Return examples of the picked candidates alone, in the order picked; the same one may be picked repeatedly.

    Args:
        listed: the examples.
        picks: of each, candidate numbers. The first candidate stays the first, so every row begins with 0.

    Raises:
        ValueError: another candidate comes first.
    """
    if picks[:, 0].any():
        raise ValueError(f"picks must keep candidate 0 first; got {picks[:, 0].tolist()}")
    return [of_candidates(example, row) for example, row in zip(listed, picks.tolist(), strict=True)]


def of_candidates(example: Example, picked: Sequence[int]) -> Example:
    """Return the example with the candidates of these numbers alone, in this order."""
    responses, score = tuple(example.responses[k] for k in picked), tuple(example.score[k] for k in picked)
    counted = None if example.counted is None else tuple(example.counted[k] for k in picked)
    return example._replace(responses=responses, score=score, counted=counted)


def with_candidates(
    example: Example,
    responses: Sequence[Int[np.ndarray, " _"]],
    score: Sequence[float],
    counted: Sequence[Bool[np.ndarray, " _"]] | None = None,
) -> Example:
    """Return the example with further candidates behind its own.

    Args:
        example: with or without tokens that do not count.
        responses: token ids of each candidate that is added.
        score: of each.
        counted: which of their tokens count; None for all.
    """
    both = None
    if counted is not None or example.counted is not None:
        both = (*which(example), *(counted or _all_of(responses)))
    return example._replace(responses=(*example.responses, *responses), score=(*example.score, *score), counted=both)


def which(example: Example) -> tuple[Bool[np.ndarray, " _"], ...]:
    """Return of each candidate which of its tokens count."""
    return _all_of(example.responses) if example.counted is None else example.counted


def _all_of(responses: Sequence[Int[np.ndarray, " _"]]) -> tuple[Bool[np.ndarray, " _"], ...]:
    return tuple(np.ones(len(response), bool) for response in responses)


def build(
    examples: Iterable[Example], *, candidates: int, labelled: bool = False, names: tuple[str, ...] = ()
) -> Examples:
    """Store examples of `candidates` candidates each, `labelled` or not, in a mixture with the `names` of its sources.

    Raises:
        ValueError: another number of candidates, an empty prompt, a first candidate without a token, or one of whose
            tokens none counts.
    """
    listed = list(examples)
    for example in listed:
        _check(example, candidates)
    prompt = np.array([len(e.prompt) for e in listed], np.int32)
    response = np.array([[len(r) for r in e.responses] for e in listed], np.int32).reshape(-1, candidates)
    size = prompt + response.sum(axis=1)
    counted, part = _stored(listed, candidates)
    pieces = [np.asarray(piece, np.int32) for e in listed for piece in (e.prompt, *e.responses)]
    stored = Examples(
        token=np.concatenate([np.zeros(0, np.int32), *pieces]),
        start=np.cumsum(size) - size,
        lengths=Lengths(prompt, response, part),
        score=np.array([e.score for e in listed], np.float32).reshape(-1, candidates),
        row=np.array([e.row for e in listed], np.int64),
        label=np.array([e.label for e in listed], np.float32),
        labelled=labelled,
        weight=np.array([e.weight for e in listed], np.float32),
        source=np.array([e.source for e in listed], np.int32),
        names=names,
        counted=counted,
    )
    return frozen(stored)


def _check(example: Example, candidates: int) -> None:
    if len(example.responses) != candidates or len(example.score) != candidates:
        raise ValueError(f"row {example.row}: {len(example.responses)} responses, expected {candidates}")
    if not len(example.prompt) or not len(example.responses[0]):
        raise ValueError(f"row {example.row}: prompt and first response need at least one token each")
    if example.counted is not None and [(len(one), bool(one.any())) for one in example.counted] != [
        (len(response), len(response) > 0) for response in example.responses
    ]:
        raise ValueError(
            f"row {example.row}: `counted` needs a value for every token of every response, at least one of them true"
        )


def _stored(
    listed: Sequence[Example], candidates: int
) -> tuple[Bool[np.ndarray, " tokens"] | None, Int[np.ndarray, "N K"] | None]:
    """Return which of all tokens count, and how many of each response; None and None where all do."""
    if all(one.all() for example in listed for one in example.counted or ()):
        return None, None
    pieces = [piece for e in listed for piece in (*_all_of([e.prompt]), *which(e))]
    part = np.array([[one.sum() for one in which(e)] for e in listed], np.int32)
    return np.concatenate(pieces), part.reshape(-1, candidates)


def frozen(examples: Examples) -> Examples:
    """Return examples, their arrays made read-only."""
    flat = (examples.token, examples.start, examples.score, examples.row, examples.label, examples.weight)
    for array in (*flat, examples.source, *examples.lengths, examples.counted):
        if array is not None:
            array.setflags(write=False)
    return examples

"""What the files of samples and of judgements say: a record of each, written, read, checked, and grouped by prompt.

`samples.jsonl` holds a line a sample, by prompt and then by sample, a superset of AlpacaEval's outputs; `judged.jsonl`
holds a line a prompt, with all its answers. Both hold token ids: what is trained on is never tokenised again. A record
that is none is refused by file, line and key. Knows JSON; knows no tokenizer, no model and no judge.
"""

import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

Prompt: TypeAlias = str | list[dict[str, Any]]  # a text, or messages
Record: TypeAlias = Mapping[str, Any]

_LARGEST = 2**31  # above every token id
PLAYER = "player"  # the field that an answer has which is not the policy's own: reference, ...
ROUNDING = 1e-4  # nats that a log-prob may be above 0


class Sample(NamedTuple):
    """One answer to a prompt.

    Attributes:
        instruction: what the user said last; the prompt where it is a text.
        output: the answer as text, without special tokens.
        generator: what the file calls who wrote it.
        prompt: a text, or messages.
        prompt_id: the number of the prompt in its source, from 0.
        sample_id: of the answer among those to the prompt, from 0.
        seed: of the draw; -1 where another program drew.
        temperature: of the draw.
        prompt_ids: tokens of the prompt, as the model read them.
        ids: tokens of the answer, EOS included where it was sampled.
        logps: log p of each of them under the model itself, in nats; an answer that a second player gave has those of
            the policy, too.
        finished: whether the answer ended by itself, by EOS or a stop string; False where it was cut.
        model: digest of the weights of the policy.
        about: other fields, which came with the prompt (uid, dataset, ...) and go on with it.
    """

    instruction: str
    output: str
    generator: str
    prompt: Prompt
    prompt_id: int
    sample_id: int
    seed: int
    temperature: float
    prompt_ids: Sequence[int]
    ids: Sequence[int]
    logps: Sequence[float]
    finished: bool
    model: str
    about: Mapping[str, Any] = {}


class Judged(NamedTuple):
    """A prompt with its K answers, judged.

    Attributes:
        prompt_id: the number of the prompt in its source.
        prompt: a text, or messages.
        prompt_ids: its tokens.
        outputs: [K] the answers as texts.
        ids: [K] their tokens.
        logps: [K] log p of each token.
        finished: [K] whether each ended by itself.
        temperatures: [K] of the draws.
        scores: [K] higher is better; None where the prompt was skipped.
        duels: (a, b, w) that were played: w = 1 where answer a won, 0 where b did, 0.5 for a tie; None for none.
        judge: its name.
        skipped: why there are no scores; "" where there are.
        models: digest of the weights that wrote the answers.
    """

    prompt_id: int
    prompt: Prompt
    prompt_ids: Sequence[int]
    outputs: Sequence[str]
    ids: Sequence[Sequence[int]]
    logps: Sequence[Sequence[float]]
    finished: Sequence[bool]
    temperatures: Sequence[float]
    scores: Sequence[float] | None
    duels: Sequence[tuple[int, int, float]] | None
    judge: str
    skipped: str
    models: str


def as_record(made: Sample | Judged) -> dict[str, Any]:
    """Return what a line of the file holds.

    Raises:
        ValueError: it is none that could be read again; names the key.
    """
    record = made._asdict()
    about = record.pop("about", {})
    record = {**about, **record}
    _check(record, _SAMPLE if isinstance(made, Sample) else _JUDGED, "the record to be written")
    return record


def sample(record: Any, where: str) -> Sample:
    """Return the sample that a record holds.

    Args:
        record: what a line holds.
        where: the line is, for the error.

    Raises:
        ValueError: it is none; names the place and the key.
    """
    _check(record, _SAMPLE, where)
    about = {name: value for name, value in record.items() if name not in Sample._fields}
    return Sample(**{name: record[name] for name in _SAMPLE}, about=about)


def judged(record: Any, where: str) -> Judged:
    """Return the judgement that a record holds; arguments and errors as of `sample`."""
    _check(record, _JUDGED, where)
    return Judged(**{name: record.get(name) for name in _JUDGED})


def judge(
    answers: Sequence[Sample],
    *,
    judge: str,
    scores: Sequence[float] | None = None,
    duels: Sequence[tuple[int, int, float]] | None = None,
    skipped: str = "",
) -> Judged:
    """Return the judgement of the answers to one prompt; the other arguments as in `Judged`."""
    first = answers[0]
    return Judged(
        prompt_id=first.prompt_id,
        prompt=first.prompt,
        prompt_ids=first.prompt_ids,
        outputs=[one.output for one in answers],
        ids=[one.ids for one in answers],
        logps=[one.logps for one in answers],
        finished=[one.finished for one in answers],
        temperatures=[one.temperature for one in answers],
        scores=scores,
        duels=duels,
        judge=judge,
        skipped=skipped,
        models=first.model,
    )


def read(path: str | pathlib.Path) -> Iterator[Sample]:
    """Yield the samples of a file, one after the other.

    Raises:
        ValueError: a line is none; names file, line and key.
    """
    yield from (sample(record, where) for where, record in _lines(pathlib.Path(path)))


def read_judged(path: str | pathlib.Path) -> Iterator[Judged]:
    """Yield the judgements of a file; errors as of `read`."""
    yield from (judged(record, where) for where, record in _lines(pathlib.Path(path)))


def by_prompt(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Yield the answers to one prompt after those to the other; they stand together in a file.

    Raises:
        ValueError: the answers to a prompt are not numbered 0, 1, ..., or differ in their prompt or model.
    """
    for number, answers in itertools.groupby(samples, key=lambda one: one.prompt_id):
        listed = list(answers)
        if [one.sample_id for one in listed] != list(range(len(listed))):
            found = ", ".join(str(one.sample_id) for one in listed[:8])
            raise ValueError(
                f"samples of prompt {number} are numbered {found}; expected 0, 1, ... in this order; make the file anew"
            )
        for name in ("prompt_ids", "prompt", "model"):
            if any(getattr(one, name) != getattr(listed[0], name) for one in listed):
                raise ValueError(f"samples of prompt {number} differ in {name}; make the file anew")
        yield listed


def alike(ids: Sequence[Sequence[int]]) -> bool:
    """Return whether there are several answers, and all of them are the same.

    Example:
        >>> alike([[1, 2], [1, 2]]), alike([[1, 2], [1]]), alike([[1, 2]])
        (True, False, False)
    """
    return len(ids) > 1 and all(list(other) == list(ids[0]) for other in ids[1:])


# ---- checks ----------------------------------------------------------------------------------------------------------

_Kind: TypeAlias = tuple[str, Callable[[Any], bool]]  # what is expected, and whether a value is it


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_prompt(value: Any) -> bool:
    messages = isinstance(value, list) and len(value) > 0 and all(isinstance(turn, Mapping) for turn in value)
    return isinstance(value, str) or (messages and all(isinstance(turn.get("role"), str) for turn in value))


def _are(each: Callable[[Any], bool], least: int = 0) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and len(value) >= least and all(map(each, value))


def _is_id(value: Any) -> bool:
    return _is_int(value) and 0 <= value < _LARGEST


def _is_logp(value: Any) -> bool:
    return _is_number(value) and value <= ROUNDING


def _is_duel(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_number, value)) and 0 <= value[2] <= 1


def _or_none(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or kind(value)


_TEXT: _Kind = ("a text", lambda value: isinstance(value, str))
_TRUTH: Callable[[Any], bool] = lambda value: isinstance(value, bool)  # noqa: E731
_WHOLE: _Kind = ("a whole number from 0", lambda value: _is_int(value) and value >= 0)
_IDS: _Kind = ("token ids, whole numbers from 0", _are(_is_id))
_PROMPT: _Kind = ("a text or messages", _is_prompt)
_PROMPT_IDS: _Kind = ("one token id or more, whole numbers from 0", _are(_is_id, 1))
_OUTPUT: dict[str, _Kind] = {"instruction": _TEXT, "output": _TEXT, "generator": _TEXT}
_SAMPLE: dict[str, _Kind] = {
    **_OUTPUT,
    "prompt": _PROMPT,
    "prompt_id": _WHOLE,
    "sample_id": _WHOLE,
    "seed": ("a whole number", _is_int),
    "temperature": ("a number from 0", lambda value: _is_number(value) and value >= 0),
    "prompt_ids": _PROMPT_IDS,
    "ids": _IDS,
    "logps": ("log-probs, finite numbers up to 0", _are(_is_logp)),
    "finished": ("true or false", _TRUTH),
    "model": _TEXT,
}
_JUDGED: dict[str, _Kind] = {
    "prompt_id": _WHOLE,
    "prompt": _PROMPT,
    "prompt_ids": _PROMPT_IDS,
    "outputs": ("one text or more", _are(lambda value: isinstance(value, str), 1)),
    "ids": ("token ids of each answer", _are(_are(_is_id), 1)),
    "logps": ("log-probs of each answer", _are(_are(_is_logp), 1)),
    "finished": ("true or false for each answer", _are(_TRUTH, 1)),
    "temperatures": ("a number from 0 for each answer", _are(lambda value: _is_number(value) and value >= 0, 1)),
    "scores": ("a finite number for each answer, or null", _or_none(_are(_is_number, 1))),
    "duels": ("[a, b, w] of answers a, b and w from 0 to 1, or null", _or_none(_are(_is_duel))),
    "judge": _TEXT,
    "skipped": _TEXT,
    "models": _TEXT,
}
_OPTIONAL = ("duels",)
_LISTS = ("ids", "logps", "finished", "temperatures", "scores")  # of as many answers as there are outputs


def _check(record: Any, kinds: Mapping[str, _Kind], where: str) -> None:
    """Refuse a record that lacks a key, or holds something else under it."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: expected an object, with {', '.join(kinds)}")
    for name, (expected, good) in kinds.items():
        if name not in record and name not in _OPTIONAL:
            raise ValueError(f"{where}: there is no {name!r}; expected {expected}; make the file anew")
        if not good(record.get(name)):
            raise ValueError(f"{where}: {name!r} is not {expected}; make the file anew")
    if kinds is _SAMPLE and len(record["logps"]) != len(record["ids"]):
        raise ValueError(f"{where}: {len(record['logps'])} 'logps' of {len(record['ids'])} 'ids'; make the file anew")
    if kinds is _JUDGED:
        _check_judged(record, where)


def _check_judged(record: Record, where: str) -> None:
    count = len(record["outputs"])
    for name in _LISTS:
        if record[name] is not None and len(record[name]) != count:
            raise ValueError(f"{where}: {len(record[name])} {name!r} of {count} 'outputs'; make the file anew")
    for k, (ids, logps) in enumerate(zip(record["ids"], record["logps"], strict=True)):
        if len(ids) != len(logps):
            raise ValueError(f"{where}: answer {k} has {len(logps)} 'logps' of {len(ids)} 'ids'; make the file anew")
    if not all(
        _is_int(a) and _is_int(b) and a != b and 0 <= min(a, b) <= max(a, b) < count
        for a, b, _ in record.get("duels") or ()
    ):
        raise ValueError(f"{where}: a duel in 'duels' is not of two of {count} answers; make the file anew")
    if (record["scores"] is None) != bool(record["skipped"]):
        raise ValueError(f"{where}: expected either 'scores' or a reason in 'skipped'; make the file anew")


def _lines(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """Yield (where it is, what it holds) of every line of a file."""
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                try:
                    yield where, json.loads(line)
                except (ValueError, RecursionError):
                    cut = "; the file was cut in the middle" if not line.endswith("\n") else ""
                    raise ValueError(f"{where}: no JSON{cut}; make the file anew") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 behind line {number}; make the file anew") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None

"""Judged answers of models to the same prompts, and the comparisons that they make.

Prompts are told apart by what they say, so that two files need not have them in one order. Knows records of
`slpojax.samples` and numbers; knows no model and no judge.
"""

import hashlib
import itertools
import json
import pathlib
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from slpojax import samples
from slpojax.base import Float, Int
from slpojax.samples import Sample


class Answers(NamedTuple):
    """The judged answers of one model.

    Attributes:
        name: of the model: the folder that the file lies in.
        judge: who judged.
        duels: whether the scores come out of comparisons, so that they rank the answers of one file alone.
        path: the file.
        prompt: what tells each answer's prompt from others.
        instruction: the last thing that its user says.
        output: the answers.
        score: of each.
        skipped: reason -> prompts that were not judged.
    """

    name: str
    judge: str
    duels: bool
    path: pathlib.Path
    prompt: list[str]
    instruction: list[str]
    output: list[str]
    score: Float[np.ndarray, " n"]
    skipped: Mapping[str, int]


class Comparisons(NamedTuple):
    """Every answer of one model against every one of another, prompt by prompt.

    Attributes:
        win: what the first one wins: 1, 0, or 1/2 where the scores are equal.
        gain: its score above the other's.
        prompt: the number of the prompt of each.
        first: number of the first one's answer.
        second: of the other's.
        alone: prompts that only one of the two has.
    """

    win: Float[np.ndarray, " n"]
    gain: Float[np.ndarray, " n"]
    prompt: Int[np.ndarray, " n"]
    first: Int[np.ndarray, " n"]
    second: Int[np.ndarray, " n"]
    alone: int


def read(spec: str, key: str) -> Answers:
    """Read judged.jsonl, or of every prompt's answers in it those of one model: FILE::FIRST:STOP.

    Args:
        spec: the file, and perhaps a slice of the answers.
        key: of the configuration, which gave it, for errors.

    Raises:
        ValueError: no such file or slice, a record that is none, or no answer.
    """
    name, _, part = spec.partition("::")
    kept = re.fullmatch(r"(\d*):(\d*)", part) if part else re.fullmatch("()()", "")
    if not kept:
        raise ValueError(f"config.{key}={spec}: expected FILE, or FILE::FIRST:STOP for some of each prompt's answers")
    piece = slice(*(int(text) if text else None for text in kept.groups()))
    path, skipped, judges, duels = pathlib.Path(name), dict[str, int](), dict[str, None](), False
    columns: list[tuple[str, str, str, float]] = []
    for one in samples.read_judged(path):
        if one.scores is None:
            skipped[one.skipped] = skipped.get(one.skipped, 0) + 1
            continue
        duels |= bool(one.duels)
        judges[one.judge] = None
        prompt, said = identity(one.prompt), instruction(one.prompt)
        here = zip(one.outputs[piece], one.scores[piece], strict=True)
        columns += [(prompt, said, output, float(score)) for output, score in here]
    if not columns:
        why = f"{sum(skipped.values()):,} prompts were skipped" if skipped else "it is empty"
        raise ValueError(f"config.{key}={spec}: no judged answer there ({why}); judge some")
    prompts, instructions, outputs, values = (list(column) for column in zip(*columns, strict=True))
    score = np.array(values, np.float64)
    model = f"{path.parent.name or path.stem}{'::' * bool(part)}{part}"
    return Answers(model, ", ".join(judges), duels, path, prompts, instructions, outputs, score, skipped)


def compare(first: Answers, second: Answers, known: dict[Any, int]) -> Comparisons:
    """Compare every answer of one model with every one of another to the same prompt; the higher score wins.

    Args:
        first: the answers of one.
        second: of the other.
        known: the number of each prompt; grows. Comparisons that share it can be paired.

    Raises:
        ValueError: no prompt in common, other judges, or scores that mean something within their own file alone.
    """
    if (first.duels or second.duels) and first.path != second.path:
        raise ValueError(
            f"{first.path} and {second.path}: their scores come out of duels among the answers of one file and do not "
            "compare; judge the answers of both models in one file (answers.pool), and name each as FILE::FIRST:STOP"
        )
    if first.judge != second.judge:
        raise ValueError(
            f"{first.path} was judged by {first.judge!r}, {second.path} by {second.judge!r}: their scores do not "
            "compare; judge both by one judge"
        )
    ours, theirs = _places(first.prompt), _places(second.prompt)
    both = [prompt for prompt in ours if prompt in theirs]
    if not both:
        raise ValueError(f"{first.path} and {second.path} have no prompt in common; generate both from one file")
    number = dict(zip(both, numbers(both, known).tolist(), strict=True))
    pairs = [(number[prompt], a, b) for prompt in both for a in ours[prompt] for b in theirs[prompt]]
    prompt, a, b = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    gain = first.score[a] - second.score[b]
    return Comparisons(0.5 * (1 + np.sign(gain)), gain, prompt, a, b, len(ours.keys() ^ theirs.keys()))


def pool(files: Sequence[Sequence[Sample]]) -> Iterator[list[Sample]]:
    """Yield, prompt by prompt, the samples of several models as if one had written them, for judges that compare.

    Those of the first model come first: with K of its samples a prompt, its answers are FILE::0:K of the judged file.

    Args:
        files: the samples of each model, to the same prompts in the same order, as many to each prompt.

    Raises:
        ValueError: the models answered other prompts.
    """
    groups = [list(samples.by_prompt(file)) for file in files]
    asked = [[(answers[0].prompt_id, identity(answers[0].prompt)) for answers in group] for group in groups]
    if any(other != asked[0] for other in asked[1:]):
        raise ValueError("the models answered other prompts; generate with the same prompts from all of them")
    for together in zip(*groups, strict=True):
        listed = list(itertools.chain.from_iterable(together))
        model = hashlib.sha256("\n".join(answers[0].model for answers in together).encode()).hexdigest()
        ids = together[0][0].prompt_ids
        yield [one._replace(sample_id=k, model=model, prompt_ids=ids) for k, one in enumerate(listed)]


def constant(drawn: Sequence[Sample], answer: str) -> list[Sample]:
    """Return one and the same answer to every prompt of some samples, as a control of the judge.

    Args:
        drawn: samples, of whose prompts each is answered once.
        answer: the text.
    """
    first = [answers[0] for answers in samples.by_prompt(drawn)]
    return [one._replace(sample_id=0, output=answer, generator="constant", ids=[], logps=[], model="") for one in first]


def numbers(names: Sequence[Hashable], known: dict[Any, int] | None = None) -> Int[np.ndarray, " n"]:
    """Return a number for each name, the same for equal ones, and for those in `known`, which grows."""
    known = {} if known is None else known
    return np.array([known.setdefault(name, len(known)) for name in names], np.int64)


def identity(prompt: Any) -> str:
    """Return what tells a prompt, a text or messages, from others."""
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def instruction(prompt: Any) -> str:
    """Return the last thing that a user says.

    Example:
        >>> instruction("Hello"), instruction([{"role": "user", "content": "Hi"}, {"role": "system", "content": "Be"}])
        ('Hello', 'Hi')
    """
    if isinstance(prompt, str):
        return prompt
    said = [turn.get("content") for turn in prompt if turn.get("role") == "user"]
    return said[-1] if said and isinstance(said[-1], str) else ""


def _places(prompts: Sequence[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(i)
    return places

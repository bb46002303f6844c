"""Judge samples: `python -m slpojax.judge --config=configs/quickstart.py --config.judge.name=world.gold`.

Reads the samples.jsonl of `python -m slpojax.generate`, a line a sample, and writes judged.jsonl beside it, a line a
prompt with its K answers and their scores. A prompt without a verdict is skipped, counted and shown with its number.
Killed anywhere, the same command goes on and ends with the same bytes.
"""

import contextlib
import functools
import itertools
import pathlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from rich import box
from rich.table import Column, Table

from slpojax import bench as benches
from slpojax import errors, grid, hosts, judges, log, outputs, ranking, settings, simulate, stages, wording
from slpojax import samples as records
from slpojax.base import Params
from slpojax.grid import Grid
from slpojax.judges import Judge, Question, Skip
from slpojax.ranking import Duel
from slpojax.samples import Sample
from slpojax.settings import Config

DEFAULT = "configs/quickstart.py"
CHOICES: settings.Choices = {"judge": judges.defaults}

LIMIT = 20  # prompts without a verdict one after the other, from the first one on or for want of a server: the end
_AT_ONCE = 32  # prompts at least, whose questions a judge gets together
ALIKE, ALONE, EMPTY = "answers that are all alike", "a single answer", "an empty prompt"
UNASKED = (ALIKE, ALONE, EMPTY)  # why a judge is not asked

Json = dict[str, Any]


class Outcome(NamedTuple):
    """What a judge said of the answers to a prompt.

    Attributes:
        scores: [K], higher is better; None where there is no verdict.
        duels: the comparisons that were played, of a judge that compares.
        skip: why there is no verdict.
    """

    scores: list[float] | None = None
    duels: list[Duel] | None = None
    skip: Skip | None = None


def main() -> None:
    """Judge what the command line asks for."""
    config = settings.from_command_line(sys.argv[1:], default=DEFAULT, choices=CHOICES)
    with errors.as_lines():
        hosts.start(config.mesh.distributed, config.mesh.patience)
        outputs.check(config.output)
        with outputs.alone(config.output):
            log.say(f"wrote {run(config)}")


def run(
    config: Config, samples: pathlib.Path | None = None, *, params: Params | None = None, devices: Grid | None = None
) -> pathlib.Path:
    """Judge samples, or find them judged; return the file of verdicts.

    Args:
        config: every key of slpojax/defaults.py; `judge` and `ranking` say how.
        samples: the file of samples; that of `python -m slpojax.generate` where None. The verdicts lie beside it.
        params: the policy's parameters, for a policy that judges itself; None to read them from the export of
            config.start, or where this is "" from config.model.path.
        devices: the grid that holds them; made where None.

    Raises:
        ValueError: a file is not what is expected, the judge is unknown or cannot be loaded, or it has no verdict on
            prompt after prompt; says why.
    """
    benches.set_up_jax(config)
    samples = samples or pathlib.Path(config.generate.to or config.output) / "samples.jsonl"
    made_of = stages.read_seal(samples)["lines"]
    start = _start(config)
    context = judges.Context(
        policy=str(pathlib.Path(config.start) / "hf") if config.start else start,
        reference=config.reference.path or start,
        world=config.world,
        folder=samples.parent,
        grid=devices or grid.make(config.mesh.data, config.mesh.fsdp, config.mesh.tensor),
        dtype=config.model.dtype,
        family=config.model.family,
        params=params,
    )
    options = {key: value for key, value in config.judge.items() if key != "name"}
    judge = judges.build(config.judge.name, context, **options)
    check(judge, config.ranking)
    key = {"samples": made_of, "ranking": config.ranking, **judge.key}
    stage = stages.Stage(samples.with_name("judged.jsonl"), key, "prompts judged")
    count = sum(1 for _ in records.by_prompt(records.read(samples)))
    stages.fill(stage, count, lambda first: _produce(judge, config.ranking, samples, first, count))
    log.say(table(f"{judge.name} on {samples}", stage.path, judge.counts()))
    return stage.path


def _start(config: Config) -> str:
    """Return the folder of the model that a run starts from: in a world its reference, where there is one yet."""
    if config.world and not config.model.path:
        with contextlib.suppress(ValueError):  # only a policy that judges itself misses it, and says so
            return simulate.reference(config)
    return config.model.path


def check(judge: Judge, word: str) -> None:
    """Refuse a judge and a ranking that do not go together.

    Raises:
        ValueError: says which key to set.
    """
    if judge.kind == judges.COMPARES and word not in ranking.SCHEDULES:
        expected = " or ".join(f"ranking={name}" for name in ranking.SCHEDULES)
        raise ValueError(f"judge {judge.name} compares two answers, and config.ranking={word!r} plays none; {expected}")
    if judge.kind == judges.SCORES and word in ranking.SCHEDULES:
        raise ValueError(f"judge {judge.name} gives scores, and config.ranking={word!r} is of duels; ranking=scores")


def verdicts(judge: Judge, word: str, questions: Sequence[Question]) -> list[Outcome]:
    """Return what a judge says of prompts with their answers, all asked together.

    Args:
        judge: of `judges.build`.
        word: how comparisons become a ranking: duels or all_pairs; scores for a judge that gives them.
        questions: with [K] answers each.
    """
    outcomes = [_unasked(judge, question) for question in questions]
    asked = [i for i, outcome in enumerate(outcomes) if outcome.skip is None]
    if asked:
        said = _scored if judge.kind == judges.SCORES else functools.partial(_compared, word=word)
        for i, outcome in zip(asked, said(judge, [questions[i] for i in asked]), strict=True):
            outcomes[i] = outcome
    return outcomes


def _scored(judge: Judge, questions: Sequence[Question]) -> list[Outcome]:
    return [Outcome(skip=said) if isinstance(said, Skip) else Outcome(said) for said in judge.ask(questions)]


def _compared(judge: Judge, questions: Sequence[Question], word: str) -> list[Outcome]:
    """Play the schedules of all prompts side by side, round by round."""
    counts = [len(question.answers) for question in questions]
    schedules = [ranking.SCHEDULES[word](count) for count in counts]
    rounds = {i: next(schedule) for i, schedule in enumerate(schedules)}
    played: list[list[Duel]] = [[] for _ in questions]
    outcomes = [Outcome() for _ in questions]
    while rounds:
        said = iter(judge.ask([_pair(questions[i], *pair) for i, pairs in rounds.items() for pair in pairs]))
        for i, pairs in [*rounds.items()]:
            won = list(itertools.islice(said, len(pairs)))
            skip = next((value for value in won if isinstance(value, Skip)), None)
            if skip is None:
                played[i] += [(a, b, round(float(w), 6)) for (a, b), w in zip(pairs, won, strict=True)]
                try:
                    rounds[i] = schedules[i].send(won)
                    continue
                except StopIteration:
                    outcomes[i] = Outcome(ranking.strengths(counts[i], played[i]).tolist(), played[i])
            else:
                outcomes[i] = Outcome(skip=skip)
            del rounds[i]
    return outcomes


def _unasked(judge: Judge, question: Question) -> Outcome:
    """Return an outcome with the reason why a prompt is not asked about, or without one."""
    if not question.prompt:
        return Outcome(skip=Skip(EMPTY))
    if judge.kind == judges.COMPARES and len(question.answers) < 2:
        return Outcome(skip=Skip(ALONE))
    if judge.kind == judges.COMPARES and len(set(question.answers)) == 1:
        return Outcome(skip=Skip(ALIKE))
    return Outcome()


def _pair(question: Question, a: int, b: int) -> Question:
    ids = (question.ids[a], question.ids[b]) if question.ids else ()
    return question._replace(answers=(question.answers[a], question.answers[b]), ids=ids)


# ---- from file to file -----------------------------------------------------------------------------------------------


def _produce(judge: Judge, word: str, samples: pathlib.Path, first: int, count: int) -> Iterator[list[Json]]:
    """Yield the record of every prompt behind the first ones, in their order.

    Prompts without a verdict wait for one that has some: where none comes, as the server is down or the judge is not
    made for these texts, the program ends, and they are asked about again by the next one.
    """
    if jax.process_index() > 0 and not judge.every_host:
        yield from ([] for _ in range(count - first))  # the first host asks, and all read what it writes
        return
    held: list[tuple[Json, Skip]] = []
    prompts = itertools.islice(records.by_prompt(records.read(samples)), first, None)
    good = first > 0
    while batch := list(itertools.islice(prompts, max(_AT_ONCE, judge.at_once))):
        outcomes = verdicts(judge, word, [_question(answers) for answers in batch])
        for answers, outcome in zip(batch, outcomes, strict=True):
            record, skip = _record(judge, answers, outcome), outcome.skip
            unasked = skip is not None and skip.reason in UNASKED
            if skip and (unasked and held or not unasked and (skip.passing or not good)):
                held.append((record, skip))
                if sum(waiting.reason not in UNASKED for _, waiting in held) >= LIMIT:
                    raise _stopped(judge, samples, held)
                continue
            good = good or skip is None
            yield from ([waiting] for waiting, _ in held)
            held.clear()
            yield [record]
    if held and not good:
        raise _stopped(judge, samples, held)
    yield from ([waiting] for waiting, _ in held)


def _stopped(judge: Judge, samples: pathlib.Path, held: Sequence[tuple[Json, Skip]]) -> ValueError:
    """Return the error for a judge that has no verdict on prompt after prompt."""
    failed = [(record["prompt_id"], skip) for record, skip in held if skip.reason not in UNASKED]
    numbers = [number for number, _ in failed]
    ((reason, _),) = Counter(skip.reason for _, skip in failed).most_common(1)
    more = next((skip.more for _, skip in failed if skip.more and skip.reason == reason), "")
    return ValueError(
        f"judge {judge.name} has no verdict on {len(failed)} prompts one after the other (prompt_id {numbers[0]} to "
        f"{numbers[-1]} of {samples}): {reason}{f' ({more})' if more else ''}; mend this, and the same command goes on"
    )


def _question(answers: Sequence[Sample]) -> Question:
    first = answers[0]
    texts, ids = (tuple(one.output for one in answers), tuple(tuple(one.ids) for one in answers))
    return Question(first.prompt, texts, tuple(first.prompt_ids), ids)


def _record(judge: Judge, answers: Sequence[Sample], outcome: Outcome) -> Json:
    skipped = outcome.skip.reason if outcome.skip else ""
    judged = records.judge(answers, judge=judge.name, scores=outcome.scores, duels=outcome.duels, skipped=skipped)
    return records.as_record(judged)


# ---- the table at the end --------------------------------------------------------------------------------------------


def summary(path: pathlib.Path) -> dict[str, int]:
    """Return the counts of a file of verdicts: prompts, judged, tied, comparisons and their ties, and each skip.

    Args:
        path: what `run` returned.
    """
    counts: Counter[str] = Counter(dict.fromkeys(("prompts", "judged", "prompts whose best answers tie"), 0))
    for record in stages.read(path):
        counts["prompts"] += 1
        if record["skipped"]:
            counts[f"skipped: {record['skipped']}"] += 1
            continue
        best = max(record["scores"])
        counts["judged"] += 1
        counts["prompts whose best answers tie"] += record["scores"].count(best) > 1
        for _, _, won in record["duels"] or ():
            counts["comparisons"] += 1
            counts["comparisons that tie"] += won == 0.5
    return dict(counts)


def table(title: str, path: pathlib.Path, asked: Mapping[str, int | float]) -> Table:
    """Return what came of it: the counts of the file, the numbers of skipped prompts, and what was asked.

    Args:
        title: above it.
        path: the file of verdicts.
        asked: counts of this process, by name.
    """
    columns = (Column(no_wrap=True), Column(justify="right"), Column())
    made = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    numbers: dict[str, list[Any]] = {}
    for record in stages.read(path):
        numbers.setdefault(f"skipped: {record['skipped']}", []).append(record["prompt_id"])
    for name, count in summary(path).items():
        made.add_row(name, f"{count:,}", f"prompt_id {wording.few(numbers[name])}" if name in numbers else "")
    for name, number in asked.items():
        made.add_row(name, f"{number:,.2f}" if name == "cost" else f"{number:,}", "by this process")
    return made


if __name__ == "__main__":
    main()

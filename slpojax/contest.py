"""What answers say of their models: sections of an evaluation on samples, and on win rates by a judge.

Knows files of samples and judgements and how their numbers are put; knows no configuration, no weights and no judge.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from slpojax import answers, calibration, leaderboards, log, plots, winrate
from slpojax.answers import Answers, Comparisons
from slpojax.leaderboards import Duel, Output, Question
from slpojax.page import Line, Section, line
from slpojax.samples import Sample

FOOLED = 0.25  # win rate of a constant answer from which on it is spoken of


class Contest(NamedTuple):
    """A model against the baseline.

    Attributes:
        name: of the model.
        found: the comparisons.
        tally: how they went.
        controlled: the length-controlled win rate; None where there is none.
        why: there is none.
    """

    name: str
    found: Comparisons
    tally: winrate.Tally
    controlled: winrate.LengthControlled | None
    why: str


def samples(
    drawn: Sequence[Sample], ref_logps: Sequence[np.ndarray] | None, why: str, picture: pathlib.Path | None
) -> Section:
    """Return lengths, variety, entropy, and the KL to the reference, of a policy's own samples.

    The KL is the mean over samples of log P(answer) - log P_ref(answer), and the entropy that of -log P(answer): both
    mean what they say only for samples at temperature 1, and others are left out of them.

    Args:
        drawn: the samples.
        ref_logps: log p of the tokens of each sample under the reference, in nats; None where it is not known.
        why: it is not known.
        picture: the file to draw; None for none.
    """
    prompt = answers.numbers([answers.identity(one.prompt) for one in drawn])
    tokens = np.array([len(one.ids) for one in drawn], np.float64)
    words = [one.output.split() for one in drawn]
    plain = np.array([one.temperature == 1.0 for one in drawn])
    logp = np.array([np.sum(one.logps, dtype=np.float64) for one in drawn])
    finished = np.array([one.finished for one in drawn], np.float64)
    characters = np.array([len(one.output) for one in drawn], np.float64)
    lines = [
        line("length", winrate.mean(tokens, prompt), "tokens", "answers", digits=1),
        line("length in characters", winrate.mean(characters, prompt), "characters", "answers", digits=1),
        line("answers that end", winrate.mean(finished, prompt), "share of answers", "answers"),
    ]
    for n in (1, 2, 3):
        share = calibration.distinct(words, n)
        lines.append(Line(f"distinct-{n}", share, np.nan, f"share of {n}-grams", f"{len(drawn):,} answers"))
    notes, ratio = [], None
    if not plain.all():
        notes.append(f"entropy and KL leave out {int((~plain).sum()):,} answers drawn at another temperature than 1")
    if plain.any():
        at = prompt[plain]
        lines.append(line("entropy", winrate.mean(-logp[plain], at), "nats per answer", "answers", digits=2))
        lines.append(
            line("entropy of a token", winrate.ratio(-logp[plain], tokens[plain], at), "nats per token", "answers")
        )
        if ref_logps is None:
            notes.append(f"no KL to the reference: {why}")
        else:
            ratio = logp[plain] - np.array([np.sum(row, dtype=np.float64) for row in ref_logps])[plain]
            lines.append(line("KL to the reference", winrate.mean(ratio, at), "nats per answer", "answers", digits=3))
            of_token = winrate.ratio(ratio, tokens[plain], at)
            lines.append(line("KL of a token", of_token, "nats per token", "answers", digits=4))
    drawing = picture and pictured(notes, lambda: plots.samples(tokens, ratio, picture))
    caption = "Lengths of the sampled answers" + ", and the log-ratio of each to the reference" * (ratio is not None)
    return Section("Samples", lines, notes, picture.name if picture and drawing else "", caption)


def win_rates(
    policy: Answers,
    against: Answers | None,
    others: Mapping[str, Answers],
    picture: pathlib.Path | None,
) -> tuple[Section, list[Contest]]:
    """Return scores and win rates of a policy, and of others beside it, against a baseline.

    Args:
        policy: its judged answers.
        against: the baseline's; None where there is none, for scores alone.
        others: the same of other models, by what they are: "reference", "control".
        picture: the file to draw; None for none.
    """
    entrants = {"policy": policy, **others}
    lines, notes = [], []
    for what, judged in {**entrants, **({"baseline": against} if against else {})}.items():
        if not judged.duels:
            score = winrate.mean(judged.score, answers.numbers(judged.prompt))
            lines.append(line(f"{what}: score", score, "as the judge has it", "answers"))
        notes += [f"{count:,} prompts of the {what} were not judged: {why}" for why, count in judged.skipped.items()]
    if against is None:
        notes.append("no win rate: give judged answers of a baseline or of the reference")
        return Section("Judged answers", lines, notes), []
    known: dict[str, int] = {}
    contests = [contest(what, judged, against, known) for what, judged in entrants.items()]
    for one in contests:
        lines += _lines(one)
        won = one.tally
        notes.append(f"{one.name} against {against.name}: {won.wins:,} won, {won.ties:,} tied, {won.losses:,} lost")
        notes += [f"{one.name}: {one.why}"] * bool(one.why)
        if one.found.alone:
            notes.append(f"{one.found.alone:,} prompts that only the {one.name} or only the baseline has are left out")
    lines += _differences([one for one in contests if one.name != "control"])
    low, high = winrate.bootstrap(contests[0].found.win, contests[0].found.prompt)
    notes.append(f"policy: 90% of bootstrapped sets of prompts have a win rate of {100 * low:.1f} to {100 * high:.1f}")
    notes.append(f"judge: {policy.judge or 'not named'}; errors are clustered by prompt, those of differences paired")
    notes += _warning(contests)
    rates = []
    for one in contests:
        rates.append((one.name, one.tally.rate.value, one.tally.rate.error))
        rates += [(f"{one.name}, length-controlled", each.rate, each.error) for each in [one.controlled] if each]
    drawing = picture and pictured(notes, lambda: plots.win_rates(rates, picture, title=f"Against {against.name}"))
    caption = f"Win rates against {against.name}, with two standard errors"
    return Section("Judged answers", lines, notes, picture.name if picture and drawing else "", caption), contests


def contest(name: str, first: Answers, second: Answers, known: dict[str, int]) -> Contest:
    """Compare a model's answers with the baseline's.

    Args:
        name: of the model.
        first: its answers.
        second: the baseline's.
        known: the number of each prompt; grows.
    """
    found = answers.compare(first, second, known)
    length, baseline = _lengths(first, found.first), _lengths(second, found.second)
    controlled, why = None, ""
    try:
        controlled = winrate.length_controlled(found.win, length, baseline, found.prompt)
    except (ValueError, ImportError) as error:
        why = f"no length-controlled win rate: {error}"
    return Contest(name, found, winrate.tally(found.win, found.prompt), controlled, why)


def write(
    folder: pathlib.Path,
    model: str,
    policy: Answers,
    against: Answers,
    one: Contest,
    questions: Sequence[Question],
    when: float,
) -> list[str]:
    """Write the policy's answers and comparisons as AlpacaEval and, given its questions, Arena-Hard have them.

    Args:
        folder: where.
        model: name of the policy.
        policy: its answers.
        against: the baseline's.
        one: how they compare.
        questions: Arena-Hard's; those that were not answered are counted and left out.
        when: seconds since 1970.

    Returns:
        What there is to say of the files, a line each.
    """
    pairs = list(zip(one.found.first.tolist(), one.found.second.tolist(), one.found.win.tolist(), strict=True))
    duels = [Duel(policy.instruction[a], against.output[b], policy.output[a], win) for a, b, win in pairs]
    first = {prompt: i for i, prompt in reversed(list(enumerate(policy.prompt)))}
    outputs = [Output(policy.instruction[i], policy.output[i], model) for i in sorted(first.values())]
    names = {"model": model, "baseline": against.name, "judge": policy.judge or "judge"}
    leaderboards.write_outputs(folder / "model_outputs.json", outputs)
    leaderboards.write_annotations(folder / "annotations.json", duels, **names)
    lengths = [len(policy.output[a]) for a, _, _ in pairs]
    row = leaderboards.leaderboard_row(one.found.win, lengths, one.controlled)
    leaderboards.write_leaderboard(folder / "leaderboard.csv", {model: row})
    said = ["AlpacaEval's files: model_outputs.json, annotations.json, leaderboard.csv"]
    if questions:
        answered = {policy.instruction[i]: policy.output[i] for i in sorted(first.values(), reverse=True)}
        of_question: dict[str, list[float]] = {}
        for a, _, win in pairs:
            of_question.setdefault(policy.instruction[a], []).append(win)
        kept = [question for question in questions if question.prompt in of_question]
        texts = [answered[question.prompt] for question in kept]
        wins = [float(np.mean(of_question[question.prompt])) for question in kept]
        leaderboards.write_answers(
            folder / "model_answer" / f"{_file(model)}.jsonl", kept, texts, model=model, tokens=_words, when=when
        )
        judgements = folder / "model_judgment" / _file(names["judge"]) / f"{_file(model)}.jsonl"
        leaderboards.write_judgements(judgements, kept, wins, **names)
        said.append(
            f"Arena-Hard's files: model_answer and model_judgment, {len(kept):,} of {len(questions):,} questions; "
            "token_len counts words, where its style control wants tokens of gpt-4o"
        )
    return said


def _lines(one: Contest) -> list[Line]:
    """Return the lines of a contest."""
    tally, controlled = one.tally, one.controlled
    made = [line(f"{one.name}: win rate", tally.rate, "%", "comparisons", digits=1, scale=100.0)]
    if controlled:
        made.append(
            Line(f"{one.name}: length-controlled", 100 * controlled.rate, 100 * controlled.error, "%", digits=1)
        )
    return made


def _differences(contests: Sequence[Contest]) -> list[Line]:
    """Return how far the first model's win rate is above each other's, over the same prompts."""
    first, made = contests[0], []
    for other in contests[1:]:
        gain = winrate.paired((first.found.win, first.found.prompt), (other.found.win, other.found.prompt))
        what = f"{first.name} minus {other.name}"
        made.append(line(what, gain, "points of win rate", "prompts", digits=1, scale=100.0))
    return made


def _warning(contests: Sequence[Contest]) -> list[str]:
    """Say where a constant answer does well."""
    rates = {one.name: one.tally.rate.value for one in contests}
    if "control" not in rates:
        return ["no control: the win rate of a constant answer is not known, and a judge may be fooled by one"]
    control, policy = rates["control"], rates["policy"]
    if control >= policy:
        return [f"warning: a constant answer wins {control:.0%}: what this judge says is not to be trusted"]
    if control >= FOOLED:
        return [f"warning: a constant answer wins {control:.0%}: the baseline is weak, or the judge is fooled"]
    return []


def pictured(notes: list[str], draw: Callable[[], Any]) -> bool:
    """Draw a picture; where that cannot be, say so among the notes."""
    try:
        draw()
    except ImportError as error:
        notes.append(f"no picture: {error}")
        log.say(f"no picture: {error}")
        return False
    return True


def _lengths(judged: Answers, which: np.ndarray) -> np.ndarray:
    length = np.array([len(output) for output in judged.output], np.int64)
    return length[which]


def _words(text: str) -> int:
    return len(text.split())


def _file(name: str) -> str:
    """Return a name as that of a file."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".") or "model"

"""The files of AlpacaEval and Arena-Hard: their prompts are read; answers, annotations and judgements written in shape.

What is written here, their own programs read: `alpaca_eval` makes its (length-controlled) win rates of the annotations,
Arena-Hard's `show_result.py` its table of the judgements. Knows files and texts; knows no model and no judge.
"""

import csv
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from slpojax import winrate

COLUMNS = (
    *("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate", "mode"),
    *("avg_length", "length_controlled_winrate", "lc_standard_error"),
)  # of AlpacaEval's leaderboard, behind the name of the model


class Output(NamedTuple):
    """A record of AlpacaEval's prompts, or of a model's answers to them.

    Attributes:
        instruction: the prompt.
        output: the answer; "" where the file holds prompts alone.
        generator: who wrote it.
        dataset: the part of the prompts.
    """

    instruction: str
    output: str = ""
    generator: str = ""
    dataset: str = ""


class Question(NamedTuple):
    """A record of Arena-Hard's questions.

    Attributes:
        uid: its name.
        category: the part of the questions, which has its own baseline.
        prompt: the question.
    """

    uid: str
    category: str
    prompt: str


class Duel(NamedTuple):
    """A comparison of a model's answer with the baseline's.

    Attributes:
        instruction: the prompt.
        baseline: the baseline's answer.
        answer: the model's.
        win: what the model wins, 0 to 1.
    """

    instruction: str
    baseline: str
    answer: str
    win: float


class Judgement(NamedTuple):
    """A record of Arena-Hard's judgements.

    Attributes:
        uid: of the question.
        category: of the question.
        verdicts: of the game in which the baseline is A, and of that in which the model is.
    """

    uid: str
    category: str
    verdicts: tuple[str, str]


def read_outputs(path: str | pathlib.Path) -> list[Output]:
    """Read AlpacaEval's prompts, or a model's answers to them: one JSON list of objects with an `instruction`.

    Raises:
        ValueError: no such file, no such list, or a record that lacks its instruction.
    """
    path = pathlib.Path(path)
    text = _text(path)
    try:
        records = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({_place(error)}); expected AlpacaEval's list of records, whole") from error
    if not isinstance(records, list):
        raise ValueError(f"{path}: holds a JSON {type(records).__name__}, expected AlpacaEval's list of records")
    return [
        Output(
            _string(path, row, record, "instruction", least=1),
            _string(path, row, record, "output", default=""),
            _string(path, row, record, "generator", default=""),
            _string(path, row, record, "dataset", default=""),
        )
        for row, record in enumerate(records)
    ]


def read_questions(path: str | pathlib.Path) -> list[Question]:
    """Read Arena-Hard's question.jsonl.

    Raises:
        ValueError: no such file, or a line that is no record with `uid`, `category` and `prompt`, or a uid comes twice.
    """
    path = pathlib.Path(path)
    questions = [
        Question(*(_string(path, row, record, key, least=1) for key in Question._fields))
        for row, record in _lines(path, "Arena-Hard's questions")
    ]
    _require_once(path, [question.uid for question in questions])
    return questions


def read_judgements(path: str | pathlib.Path) -> tuple[list[Judgement], int]:
    """Read the judgements of one model, and count those without a verdict, which Arena-Hard leaves out.

    Raises:
        ValueError: no such file, a line that is no record, not two games, or a verdict that is none.
    """
    path, found, without = pathlib.Path(path), [], 0
    for row, record in _lines(path, "Arena-Hard's judgements"):
        uid, category = (_string(path, row, record, key, least=1) for key in ("uid", "category"))
        games = record.get("games")
        if not isinstance(games, list) or len(games) != 2:
            raise ValueError(f"{path}, row {row}: games: expected a list of two, one for each order of the answers")
        scores = [game.get("score") if isinstance(game, Mapping) else None for game in games]
        if None in scores:
            without += 1
            continue
        if wrong := [score for score in scores if score not in winrate.VERDICTS]:
            shown = repr(wrong[0])[:40]
            raise ValueError(f"{path}, row {row}: score: got {shown}, expected one of {', '.join(winrate.VERDICTS)}")
        found.append(Judgement(uid, category, (str(scores[0]), str(scores[1]))))
    return found, without


def write_outputs(path: str | pathlib.Path, outputs: Iterable[Output]) -> None:
    """Write a model's answers as AlpacaEval reads them: model_outputs.json."""
    _write(pathlib.Path(path), json.dumps([output._asdict() for output in outputs], ensure_ascii=False, indent=1))


def write_annotations(
    path: str | pathlib.Path, duels: Iterable[Duel], *, model: str, baseline: str, judge: str, dataset: str = ""
) -> None:
    """Write comparisons as AlpacaEval's annotations.json, of which its package makes win rates.

    Args:
        path: the file.
        duels: the comparisons.
        model: the name of the model, `generator_2`.
        baseline: that of the baseline, `generator_1`.
        judge: who compared, `annotator`.
        dataset: the part of the prompts.
    """
    records = [
        {
            "instruction": duel.instruction,
            "output_1": duel.baseline,
            "generator_1": baseline,
            "output_2": duel.answer,
            "generator_2": model,
            "dataset": dataset,
            "annotator": judge,
            "preference": 1.0 + duel.win,
            "raw_completion": None,
            "time_per_example": 0.0,
            "price_per_example": 0.0,
        }
        for duel in duels
    ]
    _write(pathlib.Path(path), json.dumps(records, ensure_ascii=False, indent=1))


def leaderboard_row(
    win: Sequence[float] | np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    controlled: winrate.LengthControlled | None,
    *,
    mode: str = "dev",
) -> dict[str, Any]:
    """Return a model's row of AlpacaEval's leaderboard.

    Args:
        win: what the model wins of each comparison, 0 to 1.
        lengths: of the model's answers, in characters.
        controlled: the length-controlled win rate, or None.
        mode: how AlpacaEval ranks it: verified, community, minimal or dev.

    Errors are AlpacaEval's: comparisons count as independent, and that of the length-controlled rate of this variant is
    0. `n_total` counts comparisons.
    """
    win = np.asarray(win, np.float64)
    whole = np.where(win == 0.5, 0.5, np.round(win))
    wins, losses = int((win > 0.5).sum()), int((win < 0.5).sum())
    return {
        "win_rate": 100 * float(win.mean()),
        "standard_error": 100 * winrate.mean(win, np.arange(len(win))).error,
        "n_wins": wins,
        "n_wins_base": losses,
        "n_draws": len(win) - wins - losses,
        "n_total": len(win),
        "discrete_win_rate": 100 * float(whole.mean()),
        "mode": mode,
        "avg_length": int(np.mean(lengths)),
        "length_controlled_winrate": 100 * controlled.rate if controlled else "",
        "lc_standard_error": 0.0 if controlled else "",
    }


def write_leaderboard(path: str | pathlib.Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a leaderboard.csv of AlpacaEval: the name of a model -> its row, as `leaderboard_row` makes it."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["", *COLUMNS])
        writer.writerows([name, *(row[column] for column in COLUMNS)] for name, row in rows.items())
    part.replace(path)


def write_answers(
    path: str | pathlib.Path,
    questions: Sequence[Question],
    answers: Sequence[str],
    *,
    model: str,
    tokens: Callable[[str], int],
    when: float,
) -> None:
    """Write answers as Arena-Hard's model_answer/MODEL.jsonl.

    Args:
        path: the file.
        questions: what was asked.
        answers: one to each.
        model: its name.
        tokens: counts the tokens of an answer; Arena-Hard counts with tiktoken's gpt-4o, so its style control wants
            that of all models that it compares.
        when: seconds since 1970.
    """
    lines = []
    for question, answer in zip(questions, answers, strict=True):
        messages = [{"role": "user", "content": question.prompt}]
        lines.append(
            {
                "uid": question.uid,
                "ans_id": hashlib.sha256(f"{model}\n{question.uid}\n{answer}".encode()).hexdigest()[:22],
                "model": model,
                "messages": [*messages, {"role": "assistant", "content": {"answer": answer}}],
                "tstamp": when,
                "metadata": {"token_len": tokens(answer), **style(answer)},
            }
        )
    _write_lines(pathlib.Path(path), lines)


def write_judgements(
    path: str | pathlib.Path,
    questions: Sequence[Question],
    wins: Sequence[float] | np.ndarray,
    *,
    model: str,
    baseline: str,
    judge: str,
) -> None:
    """Write comparisons as Arena-Hard's model_judgment/JUDGE/MODEL.jsonl, which its `show_result.py` reads.

    Args:
        path: the file.
        questions: what was asked.
        wins: of each, what the model wins, 0 to 1; both games of a question get the verdict that follows from it.
        model: its name.
        baseline: that of the baseline.
        judge: who compared.
    """
    lines = []
    for question, win in zip(questions, wins, strict=True):
        first, second = ("B>A", "A>B") if win > 0.5 else ("A>B", "B>A") if win < 0.5 else ("A=B", "A=B")
        games = [{"score": score, "judgment": None, "prompt": None} for score in (first, second)]
        names = {"judge": judge, "model": model, "baseline": baseline}
        lines.append({"uid": question.uid, "category": question.category, **names, "games": games})
    _write_lines(pathlib.Path(path), lines)


def style(answer: str) -> dict[str, dict[str, int]]:
    r"""Count the marks of Markdown outside of code blocks, as Arena-Hard's style control does.

    Example:
        >>> style("# A\n- **b** and __c__\n1. d")["list_count"]
        {'ordered': 1, 'unordered': 1}
    """
    text = answer
    for block in re.findall("```([^`]*)```", answer):
        text = text.replace(block, "")  # wherever it stands: what is counted must be what their models are counted by

    def count(pattern: str) -> int:
        return len(re.findall(pattern, text, flags=re.MULTILINE))

    return {
        "header_count": {f"h{level}": count(rf"^#{{{level}}}\s") for level in range(1, 7)},
        "list_count": {"ordered": count(r"^\s*\d+\.\s"), "unordered": count(r"^\s*[-*+]\s")},
        "bold_count": {"**": count(r"\*\*[^*\n]+\*\*"), "__": count(r"__[^_\n]+__")},
    }


def _lines(path: pathlib.Path, what: str) -> Iterable[tuple[int, Mapping[str, Any]]]:
    """Yield the records of a file of JSON lines with their rows, from 1."""
    for row, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{path}, row {row}: no JSON ({_place(error)}); expected {what}, an object a line, whole"
            ) from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, row {row}: a JSON {type(record).__name__}, expected an object of {what}")
        yield row, record


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ValueError(f"{path}: cannot be read ({why}); give the path of a file that is there") from error


def _place(error: ValueError) -> str:
    return f"{error.msg}, line {error.lineno}" if isinstance(error, json.JSONDecodeError) else type(error).__name__


def _string(path: pathlib.Path, row: int, record: Any, key: str, *, least: int = 0, default: str | None = None) -> str:
    """Return the text under a key of a record."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{path}, row {row}: a JSON {type(record).__name__}, expected an object with {key}")
    value = record.get(key, default)
    if not isinstance(value, str) or len(value) < least:
        got = "none" if key not in record else "an empty text" if value == "" else f"a {type(value).__name__}"
        raise ValueError(f"{path}, row {row}: {key}: got {got}, expected a text")
    return value


def _require_once(path: pathlib.Path, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for row, name in enumerate(names, 1):
        if name in seen:
            raise ValueError(f"{path}, row {row}: uid: one that came before; expected every question once")
        seen.add(name)


def _write_lines(path: pathlib.Path, records: Iterable[Mapping[str, Any]]) -> None:
    _write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _write(path: pathlib.Path, text: str) -> None:
    """Write a file that is there only once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)

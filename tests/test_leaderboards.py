"""Files of AlpacaEval and Arena-Hard: read, written in their shapes, and refused in one line where they are wrong."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from slpojax import leaderboards, winrate
from slpojax.leaderboards import Duel, Judgement, Output, Question

SCRIPT = pathlib.Path(__file__).parent / "goldens" / "alpaca_eval.py"
QUESTIONS = [Question("u1", "hard_prompt", "Why?"), Question("u2", "creative_writing", "Sing.")]
ANSWER = """# Title
## Part
1. one
 2. two
- three
  * four
**bold** and __also__
```
# no header
- no item
```
"""


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_alpaca_evals_prompts_and_outputs_are_read(tmp_path):
    record = {
        "instruction": "Why?",
        "output": "So.",
        "generator": "gpt4",
        "dataset": "helpful_base",
        "datasplit": "eval",
    }
    path = tmp_path / "alpaca_eval.json"
    path.write_text(json.dumps([record, {"instruction": "How?"}]))
    assert leaderboards.read_outputs(path) == [Output("Why?", "So.", "gpt4", "helpful_base"), Output("How?")]
    leaderboards.write_outputs(tmp_path / "model_outputs.json", [Output("Wié?", "Só.", "mine")])
    assert leaderboards.read_outputs(tmp_path / "model_outputs.json") == [Output("Wié?", "Só.", "mine")]


def test_annotations_have_alpaca_evals_shape(tmp_path):
    duels = [Duel("Why?", "base", "mine", 1.0), Duel("How?", "base", "my", 0.5)]
    leaderboards.write_annotations(tmp_path / "a.json", duels, model="m", baseline="b", judge="j", dataset="d")
    first, second = json.loads((tmp_path / "a.json").read_text())
    assert first == {
        "instruction": "Why?",
        "output_1": "base",
        "generator_1": "b",
        "output_2": "mine",
        "generator_2": "m",
        "dataset": "d",
        "annotator": "j",
        "preference": 2.0,
        "raw_completion": None,
        "time_per_example": 0.0,
        "price_per_example": 0.0,
    }
    assert second["preference"] == 1.5, "a tie"


def test_the_leaderboard_is_alpaca_evals_csv(tmp_path):
    controlled = winrate.LengthControlled(0.6, 0.1, -1.0, 0.4, 1.0)
    row = leaderboards.leaderboard_row([1.0, 0.5, 0.0, 1.0], [10, 20, 30, 41], controlled)
    leaderboards.write_leaderboard(tmp_path / "l.csv", {"mine": row})
    (read,) = csv.DictReader((tmp_path / "l.csv").read_text().splitlines())
    assert read.pop("") == "mine" and tuple(read) == leaderboards.COLUMNS
    assert (read["win_rate"], read["n_draws"], read["avg_length"]) == ("62.5", "1", "25")
    assert read["length_controlled_winrate"] == "60.0"
    assert leaderboards.leaderboard_row([1.0], [1], None)["length_controlled_winrate"] == ""


def test_arena_hards_questions_answers_and_judgements(tmp_path):
    path = write_lines(tmp_path / "question.jsonl", [{**q._asdict(), "subcategory": "x"} for q in QUESTIONS])
    assert leaderboards.read_questions(path) == QUESTIONS
    folder = tmp_path / "model_answer" / "mine.jsonl"
    leaderboards.write_answers(folder, QUESTIONS, [ANSWER, "La."], model="mine", tokens=len, when=5.0)
    first, second = map(json.loads, folder.read_text().splitlines())
    assert first.keys() == {"uid", "ans_id", "model", "messages", "tstamp", "metadata"}
    assert first["messages"] == [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": {"answer": ANSWER}},
    ]
    assert first["ans_id"] != second["ans_id"] and len(first["ans_id"]) == 22
    assert first["metadata"] == {
        "token_len": len(ANSWER),
        "header_count": {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0},
        "list_count": {"ordered": 2, "unordered": 2},
        "bold_count": {"**": 1, "__": 1},
    }
    judged = tmp_path / "judged.jsonl"
    names = {"model": "mine", "baseline": "base", "judge": "j"}
    leaderboards.write_judgements(judged, [*QUESTIONS, QUESTIONS[0]], [0.75, 0.5, 0.0], **names)
    assert json.loads(judged.read_text().splitlines()[0]) == {
        "uid": "u1",
        "category": "hard_prompt",
        **names,
        "games": [{"score": s, "judgment": None, "prompt": None} for s in ("B>A", "A>B")],
    }
    read, without = leaderboards.read_judgements(judged)
    assert read[0] == Judgement("u1", "hard_prompt", ("B>A", "A>B")) and without == 0
    values, question = winrate.arena_hard([one.verdicts for one in read])
    assert values.tolist() == [1, 1, 0.5, 0.5, 0, 0], "what is written reads back as it was"
    assert winrate.by_prompt(values, question)[0].tolist() == [1, 0.5, 0]


def test_judgements_without_a_verdict_are_counted(tmp_path):
    games = [[{"score": "A>B"}, {"score": None}], [{"score": "A>>B"}, {"score": "B=A"}], [None, {"score": "A>B"}]]
    records = [{"uid": f"u{i}", "category": "math", "games": pair} for i, pair in enumerate(games)]
    read, without = leaderboards.read_judgements(write_lines(tmp_path / "j.jsonl", records))
    assert [one.uid for one in read] == ["u1"] and without == 2


@pytest.mark.parametrize(
    ("read", "text", "says"),
    [
        ("outputs", None, "cannot be read .No such file or directory."),
        ("outputs", '[{"instruction": "a"}', "no JSON .*line 1.; expected AlpacaEval's list of records, whole"),
        ("outputs", '{"instruction": "a"}', "holds a JSON dict, expected AlpacaEval's list"),
        ("outputs", '["a"]', "row 0: a JSON str, expected an object with instruction"),
        ("outputs", '[{"instruction": "a"}, {"output": "b"}]', "row 1: instruction: got none, expected a text"),
        ("outputs", '[{"instruction": ""}]', "row 0: instruction: got an empty text"),
        ("outputs", '[{"instruction": "a", "output": 3}]', "row 0: output: got a int, expected a text"),
        ("questions", '{"uid": "a", "category": "math", "prompt": "p"}\n{"uid": "b', "row 2: no JSON"),
        ("questions", '{"uid": "a", "category": "math"}', "row 1: prompt: got none"),
        ("questions", '{"uid": "a", "category": "m", "prompt": "p"}\n' * 2, "row 2: uid: one that came before"),
        ("questions", "[]", "row 1: a JSON list, expected an object"),
        ("judgements", '{"uid": "a", "category": "m", "games": [{"score": "A>B"}]}', "games: expected a list of two"),
        (
            "judgements",
            '{"uid": "a", "category": "m", "games": [{"score": "A>B"}, {"score": "A"}]}',
            "score: got 'A', expected one of A>>B, A>B, A=B",
        ),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, read, text, says):
    path = tmp_path / "file"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        getattr(leaderboards, f"read_{read}")(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.check
def test_alpaca_eval_makes_our_win_rates_of_our_annotations(tmp_path):
    """With the Python of $SLPOJAX_ALPACA, an environment of its own in which alpaca-eval is installed."""
    pytest.importorskip("sklearn")
    python = os.environ.get("SLPOJAX_ALPACA", sys.executable)
    if subprocess.run([python, "-c", "import alpaca_eval"], capture_output=True).returncode:
        pytest.skip("set SLPOJAX_ALPACA to a python that has alpaca-eval")
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(5, 200, (2, 250))
    win = np.where(rng.uniform(size=250) < 1 / (1 + np.exp(-(ours - theirs) / 60.0 - 0.3)), 1.0, 0.0)
    win[::9] = 0.5
    duels = [Duel(f"p{i}", "b" * theirs[i], "m" * ours[i], win[i]) for i in range(250)]
    leaderboards.write_annotations(tmp_path / "a.json", duels, model="m", baseline="b", judge="j")
    command = [python, "-W", "ignore", SCRIPT, tmp_path / "a.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, controlled = json.loads(done.stdout), winrate.length_controlled(win, ours, theirs, np.arange(250))
    row = leaderboards.leaderboard_row(win, ours, controlled)
    for name in ("win_rate", "standard_error", "discrete_win_rate", "length_controlled_winrate", "lc_standard_error"):
        assert row[name] == pytest.approx(found[name], abs=1e-6), name

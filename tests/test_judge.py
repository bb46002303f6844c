"""The program that judges samples: what it writes, what it skips, where it stops, and that kills change no byte."""

import pathlib
import re
import subprocess
import sys

import loopback
import pytest
from loopback import Fault

from slpojax import defaults, judge, judges, ranking, settings, stages
from slpojax.judges import Question

ROOT = pathlib.Path(__file__).resolve().parents[1]
ANSWERS = ("bb", "a", "dddd", "ccc")


def samples_of(folder, prompts, *, answers=ANSWERS):
    """Write <folder>/samples.jsonl as the sampler does."""

    def produce(first):
        for number in range(first, len(prompts)):
            own = answers(number) if callable(answers) else answers
            yield [
                {"instruction": str(prompts[number]), "output": text, "generator": "policy", "prompt": prompts[number]}
                | {"prompt_id": number, "sample_id": k, "seed": 0, "temperature": 0.5 + k, "prompt_ids": [7, number]}
                | {"ids": [k, 9], "logps": [-0.5, -0.25], "finished": k > 0, "model": "d1gest"}
                for k, text in enumerate(own)
            ]

    stages.fill(stages.Stage(folder / "samples.jsonl", {"of": "a test"}, "prompts"), len(prompts), produce)
    return folder / "samples.jsonl"


def config_of(folder, **changes):
    changes = {"output": str(folder)} | changes
    return settings.resolve(defaults.get_config(), changes, choices=judge.CHOICES)


def run(folder, **changes):
    path = judge.run(config_of(folder, **{key.replace("__", "."): value for key, value in changes.items()}))
    return list(stages.read(path))


def test_scores_and_what_goes_along(tmp_path):
    samples_of(tmp_path, ["one", [{"role": "user", "content": "two"}]])
    first, second = run(tmp_path, judge__name="rules.longest")
    assert first == {
        "prompt_id": 0,
        "prompt": "one",
        "prompt_ids": [7, 0],
        "outputs": list(ANSWERS),
        "ids": [[k, 9] for k in range(4)],
        "logps": [[-0.5, -0.25]] * 4,
        "finished": [False, True, True, True],
        "temperatures": [0.5, 1.5, 2.5, 3.5],
        "scores": [2.0, 1.0, 4.0, 3.0],
        "duels": None,
        "judge": "rules.longest",
        "skipped": "",
        "models": "d1gest",
    }
    assert second["prompt"] == [{"role": "user", "content": "two"}] and second["scores"] == first["scores"]


def test_duels_make_a_ranking(tmp_path):
    samples_of(tmp_path, ["one"])
    (record,) = run(tmp_path, judge__name="rules.longer", ranking="duels")
    assert record["duels"] == [[0, 1, 1.0], [0, 2, 0.0], [2, 3, 1.0]]
    assert record["scores"] == ranking.strengths(4, [(0, 1, 1.0), (0, 2, 0.0), (2, 3, 1.0)]).tolist()
    assert max(record["scores"]) == record["scores"][2]


def test_all_pairs_rank_all_answers(tmp_path):
    samples_of(tmp_path, ["one"])
    (record,) = run(tmp_path, judge__name="rules.longer", ranking="all_pairs")
    assert len(record["duels"]) == 6
    assert sorted(range(4), key=lambda k: record["scores"][k]) == [1, 0, 3, 2]


def test_the_table_counts_what_was_judged_skipped_and_tied(tmp_path, capsys):
    def answers(number):
        return [("same", "same"), ("a", "b"), ("a", "bb"), ("only",), ("a", "bbb")][number % 5]

    samples_of(tmp_path, [f"p{n}" for n in range(15)], answers=answers)
    path = tmp_path / "samples.jsonl"
    list(run(tmp_path, judge__name="rules.longer", ranking="duels"))
    counts = judge.summary(path.with_name("judged.jsonl"))
    assert counts == {
        "prompts": 15,
        "judged": 9,
        "prompts whose best answers tie": 3,
        "comparisons": 9,
        "comparisons that tie": 3,
        "skipped: answers that are all alike": 3,
        "skipped: a single answer": 3,
    }
    said = capsys.readouterr().out
    assert re.search(r"skipped: answers that are all alike +3 +prompt_id 0, 5, 10", said)


def test_an_empty_prompt_is_skipped(tmp_path):
    samples_of(tmp_path, ["one", ""])
    first, second = run(tmp_path, judge__name="rules.longest")
    assert (first["skipped"], second["skipped"], second["scores"]) == ("", "an empty prompt", None)


# ---- judges that fail ------------------------------------------------------------------------------------------------


def picky(prompt, answers, *, best: int = 3):
    """Have no verdict on some prompts."""
    number = int(prompt[1:])
    if number % best:
        raise RuntimeError(prompt)
    return [float("nan") if number % 2 else len(answer) for answer in answers]


def never(prompt, answers):
    return [1.0]


def test_a_prompt_without_a_verdict_is_skipped_counted_and_shown(tmp_path, capsys):
    samples_of(tmp_path, [f"p{n}" for n in range(9)])
    records = run(tmp_path, judge__name=f"{__name__}.picky")
    assert [record["skipped"] for record in records] == [
        *("", "the judge raised RuntimeError", "the judge raised RuntimeError"),
        *("a score that is not finite", "the judge raised RuntimeError", "the judge raised RuntimeError"),
        *("", "the judge raised RuntimeError", "the judge raised RuntimeError"),
    ]
    assert [record["scores"] is None for record in records] == [bool(record["skipped"]) for record in records]
    assert re.search(r"skipped: a score that is not finite +1 +prompt_id 3 *\n", capsys.readouterr().out)


@pytest.mark.parametrize(("count", "failed"), [(3, 3), (50, 20)])
def test_a_judge_that_never_has_a_verdict_stops_the_program(tmp_path, count, failed):
    samples_of(tmp_path, [f"p{n}" for n in range(count)])
    with pytest.raises(
        ValueError, match=f"no verdict on {failed} prompts.*prompt_id 0 to {failed - 1}.*1 scores for 4"
    ):
        run(tmp_path, judge__name=f"{__name__}.never")
    assert not (tmp_path / "judged.jsonl").exists()


def test_many_prompts_in_a_row_may_fail_once_there_was_a_verdict(tmp_path):
    samples_of(tmp_path, [f"p{n}" for n in range(60)])
    records = run(tmp_path, judge__name=f"{__name__}.picky", judge__best=50)
    assert sum(record["skipped"] == "" for record in records) == 2


def served(respond):
    def answer(route, body):
        text = body["messages"][0]["content"]
        a, b = (re.search(f"ANSWER {x} =====\n(.*?)\n=====", text, re.DOTALL)[1] for x in "AB")
        found = respond(re.search("CONVERSATION =====\n(.*?)\n=====", text, re.DOTALL)[1], a, b)
        return found if isinstance(found, Fault) else {"choices": [{"message": {"content": f"Verdict: {found}"}}]}

    return loopback.serving(answer)


def at(server, **options):
    quick = {"first_wait": 0.001, "longest_wait": 0.01, "attempts": 2, "timeout": 5.0, "model": "m", "url": server.url}
    named = {f"judge__{key}": value for key, value in (quick | options).items()}
    return {"judge__name": "endpoint.compare", "ranking": "duels"} | named


def test_a_server_judges_and_its_failures_are_skipped(tmp_path, capsys):
    def respond(prompt, a, b):
        if prompt in ("p2", "p5"):
            return Fault(500) if prompt == "p2" else "neither of them"
        return "A" if len(a) > len(b) else "B"

    samples_of(tmp_path, [f"p{n}" for n in range(8)])
    with served(respond) as server:
        records = run(tmp_path, **at(server, attempts=1))
        assert [record["skipped"] for record in records if record["skipped"]] == [
            "the server: status 500",
            "a reply without a verdict",
        ]
        assert all(record["duels"] == [[0, 1, 1.0], [0, 2, 0.0], [2, 3, 1.0]] for record in records[:2])
    said = capsys.readouterr().out
    assert re.search(r"requests answered +\d+ +by this process", said) and "requests failed: status 500" in said


@pytest.mark.check
def test_a_server_that_dies_ends_the_program_and_the_same_command_goes_on(tmp_path):
    alive = {"up": True}

    def respond(prompt, a, b):
        if not alive["up"] or (int(prompt[1:]) >= 30 and not alive.get("back")):
            return Fault(503)
        return "A" if len(a) > len(b) else "B"

    prompts = [f"p{n}" for n in range(60)]
    samples_of(tmp_path, prompts)
    with served(respond) as server:
        with pytest.raises(ValueError, match=r"no verdict on 20 prompts.*prompt_id 30 to 49.*status 503.*goes on"):
            run(tmp_path, **at(server, attempts=1))
        begun = (tmp_path / "judged.part").read_text().count("\n")
        assert begun == 1 + 30, "those that failed are asked about again"
        alive["back"] = True
        records = run(tmp_path, **at(server, attempts=1))
    assert len(records) == 60 and not any(record["skipped"] for record in records)


class Killed(BaseException):
    """What a kill is in one process."""


@pytest.mark.parametrize("word", ["scores", "duels"])
def test_stopped_anywhere_it_ends_with_the_same_bytes(tmp_path, monkeypatch, word):
    monkeypatch.setattr(judge, "_AT_ONCE", 3)
    prompts = [f"p{n}" for n in range(10)]
    name = {"scores": f"{__name__}.picky", "duels": "rules.longer"}[word]
    whole, folder = tmp_path / "whole", tmp_path / "cut"
    for place in (whole, folder):
        samples_of(place, prompts)
    run(whole, judge__name=name, ranking=word)
    expected = (whole / "judged.jsonl").read_bytes()
    left, append = [0], judge._record

    def dies(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return append(*arguments)

    monkeypatch.setattr(judge, "_record", dies)
    for after in (0, 1, 4, 2, 5, 3, 9):
        left[0] = after
        try:
            run(folder, judge__name=name, ranking=word)
        except Killed:
            assert not (folder / "judged.jsonl").exists()
    left[0] = 99
    run(folder, judge__name=name, ranking=word)
    assert (folder / "judged.jsonl").read_bytes() == expected
    run(folder, judge__name=name, ranking=word)
    with pytest.raises(ValueError, match="was made from something else"):
        run(folder, judge__name="rules.shortest")


@pytest.mark.check
def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path):
    """SIGKILL of the program itself, once so many replies have come; the cache holds what was paid for."""
    prompts = [f"p{n}" for n in range(40)]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        samples_of(folder, prompts)
    process, left = [], [0]

    def respond(prompt, a, b):
        left[0] -= 1
        if left[0] == 0:
            process[0].kill()
        return "nothing" if prompt == "p7" else "A" if len(a) > len(b) else "B"

    def start(folder, server):
        line = [sys.executable, "-m", "slpojax.judge", "--config=configs/base.py", f"--config.output={folder}"]
        line += ["--config.ranking=duels", "--config.judge.name=endpoint.compare", "--config.judge.model=m"]
        line += [f"--config.judge.url={server.url}", "--config.judge.in_flight=2"]
        process[:] = [subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)]
        return process[0].communicate()[0]

    with served(respond) as server:
        assert re.search(r"skipped: a reply without a verdict +1 +prompt_id 7", start(whole, server))
        asked = len(server.requests)
        for left[0] in (1, 50, 90, 60):
            start(cut, server)
            assert process[0].returncode == -9 and not (cut / "judged.jsonl").exists()
        said = start(cut, server)
        assert process[0].returncode == 0, said
        assert len(server.requests) <= 2 * asked + 4 * 8, "replies are kept: few are asked for twice"
    assert (cut / "judged.jsonl").read_bytes() == (whole / "judged.jsonl").read_bytes()


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge__name": "rules.longer"}, "compares two answers.*ranking=duels or ranking=all_pairs"),
        ({"judge__name": "rules.longest", "ranking": "duels"}, "gives scores.*ranking=scores"),
        ({"judge__name": ""}, "unknown judge ''"),
        ({"judge__name": "rules.longest", "ranking": "duel"}, r"unknown config.ranking 'duel' \(near: duels"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, changes, message):
    samples_of(tmp_path, ["one"])
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **changes)


def test_samples_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="samples.jsonl: no such file"):
        run(tmp_path, judge__name="rules.longest")
    samples_of(tmp_path, ["one", "two"], answers=lambda n: [3, "x"] if n else ["x"])
    with pytest.raises(ValueError, match="samples.jsonl, line 2: 'output' is not a text"):
        run(tmp_path, judge__name="rules.longest")


def test_the_command_line(tmp_path, monkeypatch, capsys):
    samples_of(tmp_path, ["one"])
    line = ["judge", "--config=configs/base.py", f"--config.output={tmp_path}", "--config.judge.name=rules.matches"]
    monkeypatch.setattr(sys, "argv", [*line, "--config.judge.pattern=^d+$"])
    judge.main()
    (record,) = stages.read(tmp_path / "judged.jsonl")
    assert record["scores"] == [0.0, 0.0, 1.0, 0.0] and "judged.jsonl" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*line, "--config.judge.patern=x"])
    with pytest.raises(SystemExit, match="error: config.judge 'rules.matches' has no hyperparameter 'patern'"):
        judge.main()


def test_only_the_first_host_asks_a_judge_that_computes_on_none(tmp_path, monkeypatch):
    samples = samples_of(tmp_path, ["one", "two", "three"])
    built = judges.build(f"{__name__}.never")
    monkeypatch.setattr(judge.jax, "process_index", lambda: 1)
    assert list(judge._produce(built, "scores", samples, 1, 3)) == [[], []]


def test_duels_are_asked_of_all_prompts_together():
    asked = []

    def ask(questions):
        asked.append(len(questions))
        return [1.0] * len(questions)

    built = judges.build("rules.longer")._replace(ask=ask)
    questions = [Question("p", ("a", "b", "c")), Question("q", ("a", "b")), Question("r", ("a", "b", "c", "d"))]
    outcomes = judge.verdicts(built, "duels", questions)
    assert asked == [3, 2, 1] and [len(outcome.duels) for outcome in outcomes] == [2, 1, 3]

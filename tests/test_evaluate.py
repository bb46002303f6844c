"""An evaluation from end to end: its numbers are those of plain log-softmaxes, one sequence after the other."""

import functools
import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import programs
import pytest
import tiny
from model_tools import logits_of, plain

from configs import base
from slpojax import evaluate, hf, models, samples, settings, stages, winrate

BETA = 0.3


@functools.cache
def forward():
    """The model of tiny.py's config.json, and the compiled (params, rows) -> logits."""
    model = models.build(tiny.MODEL)
    return model, jax.jit(lambda params, rows: logits_of(model, params, rows))


def logps_of(folder, sequences):
    """float64 log p of every token but the first of each sequence, [n - 1] each."""
    model, logits_from = forward()
    ids = np.zeros((78, 16), np.int32)  # one shape for all
    for row, one in zip(ids, sequences, strict=False):
        row[: len(one)] = one
    logits = np.asarray(logits_from(hf.load(folder, model), plain(ids)), np.float64)
    logits -= logits.max(-1, keepdims=True)
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return [logps[i, np.arange(len(one) - 1), one[1:]] for i, one in enumerate(sequences)]


def totals(folder, prompts, responses):
    """The log-probs of whole responses."""
    found = logps_of(folder, [[*p, *r] for p, r in zip(prompts, responses, strict=True)])
    return np.array([row[len(p) - 1 :].sum() for row, p in zip(found, prompts, strict=True)])


def ids_of(text):
    return [tiny.WORDS.index(word) for word in text.split()]


def write_samples(folder, scores, *, name, shift=0):
    """Write samples of `model` and what a judge says of them: three answers to each of six prompts."""
    draw = np.random.default_rng(shift)
    asked = [[int(i) + 1, 5] for i in range(6)]
    drawn = [(i, k, [*draw.integers(1, 31, draw.integers(2, 6)).tolist(), 0]) for i in range(6) for k in range(3)]
    found = logps_of(folder / "model", [[*asked[i], *ids] for i, _, ids in drawn])
    listed = []
    for (i, k, ids), row in zip(drawn, found, strict=True):
        prompt, text = (" ".join(tiny.WORDS[j] for j in part) for part in (asked[i], ids[:-1]))
        logps = row[1:].tolist()
        listed.append(samples.Sample(prompt, text, "m", prompt, i, k, 0, 1.0, asked[i], ids, logps, True, "digest"))
    (folder / name).mkdir()
    lines = [json.dumps(samples.as_record(one)) + "\n" for one in listed]
    (folder / name / "samples.jsonl").write_text("".join(lines))
    judged = [samples.judge(group, judge="gold", scores=scores(group)) for group in samples.by_prompt(listed)]
    lines = [json.dumps(samples.as_record(one)) + "\n" for one in judged]
    (folder / name / "judged.jsonl").write_text("".join(lines))
    return listed


def changes(folder):
    """What an evaluation of `model` against `other` sets."""
    values = {key: value for key, value in tiny.changes(folder, "out").items() if not key.startswith("data.eval")}
    values |= {"model.weights": "load", "reference.path": str(folder / "other"), "data.rows": ""}
    values |= {
        "mesh.data": -1,
        "mesh.fsdp": 1,
        "objective.name": "dpo.sigmoid",
        "objective.beta": BETA,
        "evaluate.to": str(folder / "report"),
    }
    return values


def run(values):
    """Evaluate; return report.json and the folder."""
    folder = evaluate.run(settings.resolve(base.get_config(), values, choices=evaluate.CHOICES))
    return json.loads((folder / "report.json").read_text()), folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of models, data and judged samples; its evaluation."""
    folder = programs.make(tmp_path_factory.mktemp("evaluate"))
    drawn = write_samples(folder, lambda group: [float(len(one.ids)) for one in group], name="policy")
    write_samples(folder, lambda group: [4.5, 3.5, 2.5], name="baseline", shift=1)
    values = changes(folder) | {"evaluate.samples": str(folder / "policy" / "samples.jsonl")}
    values |= {
        f"evaluate.{k}": str(folder / n / "judged.jsonl") for k, n in (("judged", "policy"), ("baseline", "baseline"))
    }
    report, to = run(values)
    return folder, drawn, report["sections"], report, to


def test_preferences_are_those_of_plain_log_probs(made):
    folder, _, sections, report, _ = made
    records = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    prompts = [ids_of(one["prompt"]) for one in records]
    logp, reward = {}, {}
    for which in ("chosen", "rejected"):
        responses = [[*ids_of(one[which]), 0] for one in records]
        logp[which] = totals(folder / "model", prompts, responses)
        reward[which] = BETA * (logp[which] - totals(folder / "other", prompts, responses))
    margin = reward["chosen"] - reward["rejected"]
    numbers = sections["Held-out preferences"]["numbers"]
    expected = {
        "loss": np.logaddexp(0, -margin),
        "pairs ranked right": (margin > 0).astype(float),
        "reward margin": margin,
        "reward of chosen": reward["chosen"],
        "log-prob of rejected": logp["rejected"],
    }
    for what, values in expected.items():
        assert numbers[what]["value"] == pytest.approx(values.mean(), abs=2e-5), what
        assert numbers[what]["standard_error"] == pytest.approx(values.std(ddof=1) / len(values) ** 0.5, rel=0.1), what
    pairs = [x > y for x in reward["chosen"] for y in reward["rejected"]]
    assert numbers["AUC of the reward"]["value"] == pytest.approx(np.mean(pairs), abs=1e-12)
    sure = 1 / (1 + np.exp(-np.abs(margin)))
    place = np.minimum(((sure - 0.5) * 20).astype(int), 9)
    gaps = [abs((margin[place == b] > 0).mean() - sure[place == b].mean()) * (place == b).mean() for b in set(place)]
    assert numbers["expected calibration error"]["value"] == pytest.approx(sum(gaps), abs=1e-5)
    assert report["reliability"]["pairs"] == np.bincount(place, minlength=10).tolist()


def test_the_kl_is_that_of_plain_log_probs_with_its_error(made):
    folder, drawn, sections, _, _ = made
    under_ref = totals(folder / "other", [one.prompt_ids for one in drawn], [one.ids for one in drawn])
    ratio = np.array([sum(one.logps) for one in drawn]) - under_ref
    numbers = sections["Samples"]["numbers"]
    expected = winrate.mean(ratio, np.repeat(np.arange(6), 3))
    assert numbers["KL to the reference"]["value"] == pytest.approx(expected.value, abs=1e-5)
    assert numbers["KL to the reference"]["standard_error"] == pytest.approx(expected.error, abs=1e-5)
    assert numbers["length"]["value"] == pytest.approx(np.mean([len(one.ids) for one in drawn]))
    assert any("written by other weights" in note for note in sections["Samples"]["notes"]), "their digest is made up"


def test_win_rates_and_files_of_the_leaderboards(made):
    _, drawn, sections, _, to = made
    wins = [np.mean([(len(a.ids) > b) + 0.5 * (len(a.ids) == b) for b in (4.5, 3.5, 2.5)]) for a in drawn]
    numbers = sections["Judged answers"]["numbers"]
    assert numbers["policy: win rate"]["value"] == pytest.approx(100 * np.mean(wins))
    assert numbers["policy: win rate"]["of"] == "54 comparisons, 6 prompts"
    assert len(json.loads((to / "annotations.json").read_text())) == 54
    assert len(json.loads((to / "model_outputs.json").read_text())) == 6


def test_one_page_comes_out(made):
    *_, to = made
    pytest.importorskip("matplotlib")
    text = (to / "report.md").read_text()
    for picture in ("preferences.png", "samples.png", "win_rates.png"):
        assert f"]({picture})" in text and (to / picture).read_bytes().startswith(b"\x89PNG")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Held-out preferences",
        "## Samples",
        "## Judged answers",
    ]


def test_what_is_not_given_is_said(made, tmp_path):
    folder, *_ = made
    files = {"evaluate.judged": str(folder / "policy" / "judged.jsonl"), "evaluate.to": str(tmp_path / "a")}
    report, _ = run({**files, "output": str(tmp_path)})
    assert report["sections"].keys() == {"Judged answers"}, "no model, no data: the files alone"
    assert report["sections"]["Judged answers"]["notes"][0].startswith("no win rate: give judged answers of a baseline")
    values = changes(folder) | {"reference.path": "", "evaluate.to": str(tmp_path / "b")}
    values["evaluate.samples"] = str(folder / "policy" / "samples.jsonl")
    report, _ = run(values)
    same = "config.reference.path is empty, so the policy's folder would be its own reference"
    assert same in report["sections"]["Held-out preferences"]["notes"][0]
    assert f"no KL to the reference: {same}" in report["sections"]["Samples"]["notes"][0]
    with pytest.raises(ValueError, match="nothing to evaluate: give --config.evaluate.run or --config.model.path"):
        run({"evaluate.to": str(tmp_path / "c")})


def test_samples_of_another_vocabulary_are_refused(made, tmp_path):
    folder, drawn, *_ = made
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(samples.as_record(drawn[0]._replace(ids=[77], logps=[-1.0]))) + "\n")
    values = changes(folder) | {"evaluate.samples": str(path), "evaluate.to": str(tmp_path), "data.path": ""}
    with pytest.raises(ValueError, match="line 1: ids: one is above the vocabulary of 31; another model's samples?"):
        run(values)


def test_a_file_that_is_not_whole_is_refused(made, tmp_path):
    path = tmp_path / "judged.jsonl"
    values = {"evaluate.judged": str(path), "evaluate.to": str(tmp_path / "a")}
    with pytest.raises(ValueError, match="judged.jsonl: no such file"):
        run(values)
    (tmp_path / "judged.part").write_text("{}\n")
    with pytest.raises(ValueError, match="judged.jsonl: unfinished; run its program again, which goes on"):
        run(values)
    lines = (made[0] / "policy" / "judged.jsonl").read_text().splitlines(keepends=True)
    stage = stages.Stage(path, {"made of": "a test"}, "prompts")
    stages.fill(stage, len(lines), lambda done: ([json.loads(line)] for line in lines[done:]))
    assert run(values)[0]["sections"].keys() == {"Judged answers"}
    path.write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match="was changed since it was made"):
        run(values)


def test_a_worlds_gold_reward_is_held_against_the_reference(monkeypatch):
    seen = []

    def judge(config):
        seen.append(config.model.path)
        return lambda params, step: {"world/kl": 0.5, "world/gold_lift": params}

    monkeypatch.setattr(evaluate.simulate, "judge", judge)
    values = {"world": "reviews", "model.path": "policy", "reference.path": "reference"}
    config = settings.resolve(base.get_config(), values, choices=evaluate.CHOICES)
    section = evaluate.world(config, evaluate.Policy("p", None, 1.5, "", ""))
    assert [(one.what, one.value) for one in section.lines] == [
        ("gold reward gained", 1.5),
        ("KL to the reference", 0.5),
    ]
    evaluate.world(settings.replace(config, {"evaluate.run": "run"}), evaluate.Policy("p", None, 1.5, "", ""))
    assert seen == ["reference", "policy"], "of a run model.path is what it started from"
    assert evaluate.world(config, evaluate.Policy("p", None, 1.5, "", "why")).notes == ["no gold reward: why"]


@pytest.mark.check
def test_a_run_and_its_export_are_evaluated_as_the_run_was(tmp_path, monkeypatch, capsys):
    folder = programs.make(tmp_path)
    values = programs.changes(folder, "dpo")
    from slpojax import train

    train.train(settings.resolve(base.get_config(), values, choices=train.CHOICES))
    rows = [json.loads(line) for line in (folder / "dpo" / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["split"] == "eval"][-1]
    monkeypatch.setattr(
        sys, "argv", ["evaluate", f"--config.evaluate.run={folder / 'dpo'}", "--config.evaluate.step=newest"]
    )
    evaluate.main()
    assert "Evaluation of" in capsys.readouterr().out
    of_run = json.loads((folder / "dpo" / "evaluation" / "report.json").read_text())
    assert of_run["title"].endswith("dpo step 4")
    exported = changes(folder) | {"model.path": str(folder / "dpo" / "hf"), "data.rows": "20:26", "objective.beta": 0.1}
    of_folder, _ = run(exported)
    for report in (of_run, of_folder):
        numbers = report["sections"]["Held-out preferences"]["numbers"]
        for what, name in (
            ("loss", "loss"),
            ("reward margin", "rewards/margins"),
            ("log-prob of chosen", "logps/chosen"),
        ):
            assert numbers[what]["value"] == pytest.approx(last[name], abs=2e-6), what
    with pytest.raises(ValueError, match="step 'bst': expected best, newest or a number"):
        evaluate.run(evaluate.of_run(str(folder / "dpo"), {"evaluate.step": "bst"}))


TASK = """
task: tiny_words
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.check
def test_an_exported_folder_runs_in_lm_evaluation_harness(tmp_path):
    """`lm_eval --model hf --model_args pretrained=FOLDER`, on a task of its own; its log-likelihoods are ours."""
    for name in ("lm_eval", "torch"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    folder = programs.make(tmp_path)
    draw, questions = np.random.default_rng(0), []
    for _ in range(12):
        words = [" ".join(tiny.WORDS[i] for i in draw.integers(1, 31, n)) for n in (3, 2, 2, 4)]
        questions.append(
            {"question": words[0], "choices": [f" {w}" for w in words[1:]], "answer": int(draw.integers(3))}
        )
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in questions))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny_words.yaml").write_text(TASK.replace("FILE", str(path)))
    arguments = f"--model hf --model_args pretrained={folder / 'model'},dtype=float32 --tasks tiny_words --device cpu"
    arguments += f" --include_path {tmp_path / 'tasks'} --batch_size 4 --output_path {tmp_path / 'out'} --log_samples"
    done = subprocess.run([sys.executable, "-m", "lm_eval", *arguments.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    (logged,) = (tmp_path / "out").rglob("samples_tiny_words_*.jsonl")
    theirs = [json.loads(line) for line in logged.read_text().splitlines()]
    theirs = {one["doc"]["question"]: [float(r[0][0]) for r in one["resps"]] for one in theirs}
    right = 0
    for one in questions:
        asked, count = ids_of(one["question"]), len(one["choices"])
        ours = totals(folder / "model", [asked] * count, [ids_of(choice) for choice in one["choices"]])
        np.testing.assert_allclose(theirs[one["question"]], ours, atol=1e-4)
        right += int(np.argmax(ours)) == one["answer"]
    assert json.loads(results.read_text())["results"]["tiny_words"]["acc,none"] == pytest.approx(right / 12)


@pytest.mark.check
@pytest.mark.parametrize(("judge", "ranking"), [("rules.longest", "scores"), ("rules.longer", "all_pairs")])
def test_where_a_judge_is_named_the_program_asks_by_itself(made, tmp_path, judge, ranking):
    folder = made[0]
    prompts = [{"prompt": " ".join(tiny.WORDS[i + 1 : i + 3])} for i in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts))
    values = changes(folder) | {
        "evaluate.to": str(tmp_path / "report"),
        "judge.name": judge,
        "ranking": ranking,
        "evaluate.constant": "w1 w2 w3 w4 w5 w6 w7 w8 w9",
        "generate.prompts": str(tmp_path / "prompts.jsonl"),
        "generate.samples": 2,
        "generate.max_new_tokens": 6,
    }
    report, to = run(values)
    drawn = {name: list(samples.read(str(to / name / "samples.jsonl"))) for name in ("policy", "reference")}
    assert {name: len(found) for name, found in drawn.items()} == {"policy": 24, "reference": 24}
    won, every = 0.0, 0
    for ours, theirs in zip(*(samples.by_prompt(found) for found in drawn.values()), strict=True):
        for a in ours:
            for b in theirs:
                won += 0.5 * (1 + np.sign(len(a.output) - len(b.output)))
                every += 1
    numbers = report["sections"]["Judged answers"]["numbers"]
    rate = next(value for what, value in numbers.items() if "win rate" in what and "control" not in what)
    assert rate["value"] == pytest.approx(100 * won / every, abs=1e-9)
    control = next(value for what, value in numbers.items() if "control" in what and "win rate" in what)
    assert control["value"] == pytest.approx(100.0)  # the longest of all
    again, _ = run(values)  # everything is found
    assert again["sections"]["Judged answers"] == report["sections"]["Judged answers"]

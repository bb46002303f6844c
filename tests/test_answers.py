"""Judged answers and the comparisons that they make; the page that shows them."""

import json

import numpy as np
import pytest

from slpojax import answers, contest, page, samples, winrate


def sample(prompt_id, sample_id, output, prompt=None, logps=(-1.0, -0.5), model="m", temperature=1.0):
    asked = f"prompt {prompt_id}" if prompt is None else prompt
    ids = list(range(1, len(logps) + 1))
    return samples.Sample(
        answers.instruction(asked),
        output,
        "g",
        asked,
        prompt_id,
        sample_id,
        0,
        temperature,
        [1, 2],
        ids,
        list(logps),
        True,
        model,
    )


def judged(path, scores, *, lengths=None, judge="gold", duels=None, skipped=(), shift=0):
    """Write a judged file: a list of scores a prompt; None is a prompt that was skipped."""
    lines = []
    for i, row in enumerate(scores):
        outputs = ["x" * (lengths[i] if lengths is not None else 3 + k) for k in range(len(row or [0]))]
        drawn = [sample(i + shift, k, output) for k, output in enumerate(outputs)]
        made = samples.judge(drawn, judge=judge, scores=row, duels=duels, skipped="" if row else "no verdict")
        lines.append(json.dumps(samples.as_record(made)) + "\n")
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(lines))
    return answers.read(str(path), "evaluate.judged")


def test_every_answer_meets_every_answer_to_the_same_prompt(tmp_path):
    first = judged(tmp_path / "a" / "judged.jsonl", [[1.0, 2.0], [0.0, 0.0], None])
    second = judged(tmp_path / "b" / "judged.jsonl", [[0.0], [5.0]], shift=1)
    assert (first.name, first.judge, dict(first.skipped)) == ("a", "gold", {"no verdict": 1})
    known = {}
    found = answers.compare(first, second, known)
    assert found.win.tolist() == [0.5, 0.5] and found.alone == 2, "prompt 1 alone is in both"
    assert [(first.output[a], second.output[b]) for a, b in zip(found.first, found.second, strict=True)] == [
        ("xxx", "xxx"),
        ("xxxx", "xxx"),
    ]
    again = answers.compare(second, first, known)
    assert again.prompt.tolist() == [known[json.dumps("prompt 1")]] * 2 and len(known) == 1
    assert (1 - again.win).tolist() == found.win.tolist(), "what one wins the other loses"


def test_a_part_of_the_answers_of_a_file(tmp_path):
    whole = judged(tmp_path / "pool" / "judged.jsonl", [[3.0, 1.0, 2.0]] * 4, duels=[(0, 1, 1.0)])
    ours, theirs = (answers.read(f"{whole.path}::{part}", "evaluate.judged") for part in (":1", "1:"))
    assert len(ours.output) == 4 and theirs.score.tolist() == [1.0, 2.0] * 4 and ours.duels
    assert winrate.tally(*answers.compare(ours, theirs, {})[::2][:2]).wins == 8, "duels of one file compare"
    with pytest.raises(ValueError, match="out of duels among the answers of one file and do not compare"):
        answers.compare(ours, judged(tmp_path / "other" / "judged.jsonl", [[1.0]] * 4), {})
    with pytest.raises(ValueError, match=r"config.evaluate.judged=.*::a: expected FILE, or FILE::FIRST:STOP"):
        answers.read(f"{whole.path}::a", "evaluate.judged")
    with pytest.raises(ValueError, match="no judged answer there"):
        answers.read(f"{whole.path}::7:9", "evaluate.judged")


def test_what_does_not_compare_is_refused(tmp_path):
    first = judged(tmp_path / "a" / "judged.jsonl", [[1.0]])
    with pytest.raises(ValueError, match="have no prompt in common"):
        answers.compare(first, judged(tmp_path / "b" / "judged.jsonl", [[1.0]], shift=5), {})
    with pytest.raises(ValueError, match="judged by 'gold', .* by 'other': their scores do not compare"):
        answers.compare(first, judged(tmp_path / "c" / "judged.jsonl", [[1.0]], judge="other"), {})
    with pytest.raises(ValueError, match="no judged answer there .1 prompts were skipped."):
        judged(tmp_path / "d" / "judged.jsonl", [None])


def test_a_pool_is_read_as_one_model_and_keeps_the_order_of_its_models():
    ours = [sample(i, k, f"ours {i} {k}", model="a") for i in range(2) for k in range(2)]
    theirs = [sample(i, 0, f"theirs {i}", model="b") for i in range(2)]
    first, second = answers.pool([ours, theirs])
    assert [one.output for one in first] == ["ours 0 0", "ours 0 1", "theirs 0"]
    assert [one.sample_id for one in second] == [0, 1, 2] and len({one.model for one in (*first, *second)}) == 1
    assert list(samples.by_prompt([*first, *second])) == [first, second]
    with pytest.raises(ValueError, match="answered other prompts"):
        list(answers.pool([ours, theirs[:1]]))
    assert [one.output for one in answers.constant(ours, "I am the answer.")] == ["I am the answer."] * 2


def test_messages_are_told_apart_and_the_last_user_asks():
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Why?"},
    ]
    assert answers.instruction(talk) == "Why?" and answers.instruction([{"role": "system", "content": "Be."}]) == ""
    assert answers.identity(talk) != answers.identity(talk[:1])
    assert answers.identity([{"content": "Hi", "role": "user"}]) == answers.identity(talk[:1])


def test_samples_say_entropy_and_kl_only_at_temperature_1():
    drawn = [sample(i, k, "a b a", logps=(-1.0, -0.5 * i - k)) for i in range(3) for k in range(2)]
    drawn += [sample(3, 0, "c", logps=(-9.0,), temperature=0.7)]
    ref = [np.array([-2.0, -1.0])] * 6 + [np.array([-1.0])]
    made = contest.samples(drawn, ref, "", None)
    numbers = {one.what: one for one in made.lines}
    ratio = np.array([[1.0 + 1.0 - 0.5 * i - k for k in range(2)] for i in range(3)])
    assert numbers["KL to the reference"].value == pytest.approx(ratio.mean())
    clusters = ratio.sum(1) - 2 * ratio.mean()
    rest = ((ratio - ratio.mean()) ** 2).sum()
    expected = (rest / 5 / 6 + (clusters @ clusters - rest) / 36) ** 0.5
    assert numbers["KL to the reference"].error == pytest.approx(expected)
    assert numbers["KL of a token"].value == pytest.approx(ratio.sum() / 12)
    assert numbers["entropy"].value == pytest.approx(np.mean([1 + 0.5 * i + k for i in range(3) for k in range(2)]))
    assert numbers["length"].value == pytest.approx(13 / 7) and numbers["distinct-1"].value == pytest.approx(3 / 19)
    assert made.notes == ["entropy and KL leave out 1 answers drawn at another temperature than 1"]
    without = contest.samples(drawn[:2], None, "no reference", None)
    assert "KL to the reference" not in {one.what for one in without.lines}
    assert without.notes == ["no KL to the reference: no reference"]


def test_win_rates_are_clustered_paired_and_controlled(tmp_path):
    rng = np.random.default_rng(0)

    def model(name, better):
        lengths = rng.integers(5, 80, 40)
        scores = [[float(np.round(better + rng.normal() + n / 50, 1))] for n in lengths]
        return judged(tmp_path / name / "judged.jsonl", scores, lengths=lengths)

    policy, base, ref, null = (
        model(name, x) for name, x in (("new", 1.0), ("base", 0.0), ("old", 0.5), ("null", -5.0))
    )
    section, contests = contest.win_rates(policy, base, {"reference": ref, "control": null}, None)
    numbers = {one.what: one for one in section.lines}
    wins = 0.5 * (1 + np.sign(policy.score - base.score))
    others = 0.5 * (1 + np.sign(ref.score - base.score))
    assert numbers["policy: win rate"].value == pytest.approx(100 * wins.mean())
    assert numbers["policy: win rate"].error == pytest.approx(100 * wins.std(ddof=1) / 40**0.5)
    assert numbers["policy minus reference"].value == pytest.approx(100 * (wins - others).mean())
    assert numbers["policy minus reference"].error == pytest.approx(100 * (wins - others).std(ddof=1) / 40**0.5)
    assert numbers["control: win rate"].value == 0 and "policy minus control" not in numbers
    assert not any("not to be trusted" in note for note in section.notes)
    assert any(note.startswith(f"policy against base: {int((wins == 1).sum())} won") for note in section.notes)
    fooled, _ = contest.win_rates(null, policy, {"control": policy}, None)
    assert "warning: a constant answer wins 50%: what this judge says is not to be trusted" in fooled.notes
    weak, _ = contest.win_rates(policy, null, {"control": ref}, None)
    assert "warning: a constant answer wins 100%: what this judge says is not to be trusted" in weak.notes
    middling, _ = contest.win_rates(policy, base, {"control": ref}, None)
    assert any(note.endswith("the baseline is weak, or the judge is fooled") for note in middling.notes)
    said = contest.write(tmp_path / "out", "new", policy, base, contests[0], [], 0.0)
    assert said == ["AlpacaEval's files: model_outputs.json, annotations.json, leaderboard.csv"]
    annotations = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [one["preference"] - 1 for one in annotations] == wins.tolist()
    assert {one["generator_1"] for one in annotations} == {"base"} and len(annotations) == 40
    alone, none = contest.win_rates(policy, None, {}, None)
    assert [one.what for one in alone.lines] == ["policy: score"] and none == []


def test_a_page_says_the_same_in_three_ways():
    one = page.Line("win | rate", 51.25, 3.5, "%", "8 comparisons", 1)
    none = page.Line("ECE", float("nan"), float("nan"), "share")
    sections = [
        page.Section("Judged", [one, none], ["a note"], "p.png", "a picture"),
        page.Section("Empty", [], ["why"]),
    ]
    text = page.markdown("Title", sections)
    assert "| win \\| rate | 51.2 | 3.5 | % | 8 comparisons |" in text and "| ECE | - |  | share |  |" in text
    assert "![a picture](p.png)" in text and text.endswith("## Empty\n\n- why\n")
    content = json.loads(page.as_json("Title", sections, {"bins": np.array([0.5, np.nan])}))
    assert content["sections"]["Judged"]["numbers"]["win | rate"]["value"] == 51.25 and content["bins"] == [0.5, None]
    assert content["sections"]["Judged"]["numbers"]["ECE"]["standard_error"] is None
    table = page.table("Title", sections)
    assert table.row_count == 3 and [str(column.header) for column in table.columns][1:] == ["value", "± error", "unit"]

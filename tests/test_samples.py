"""The records of samples and judgements: written, read, grouped, and refused by file, line and key."""

import json
import math

import pytest

from slpojax import samples
from slpojax.samples import Sample

SECRET = "words of a prompt"


def one(prompt_id=0, sample_id=0, **changes):
    made = Sample(
        instruction=SECRET,
        output=" fine",
        generator="policy",
        prompt=SECRET,
        prompt_id=prompt_id,
        sample_id=sample_id,
        seed=0,
        temperature=1.0,
        prompt_ids=[1, 2],
        ids=[3, 4, 0],
        logps=[-0.5, -1.0, -0.25],
        finished=True,
        model="ab" * 32,
        about={"dataset": "koala"},
    )
    return made._replace(**changes)


def write(path, made):
    path.write_text("".join(json.dumps(samples.as_record(record)) + "\n" for record in made))
    return path


def test_what_is_written_is_read_and_grouped(tmp_path):
    made = [one(p, k, ids=[p, k], logps=[-1.0, 0.0]) for p in (0, 3) for k in range(2)]
    path = write(tmp_path / "samples.jsonl", made)
    assert list(samples.read(path)) == made
    groups = list(samples.by_prompt(samples.read(path)))
    assert [[(s.prompt_id, s.sample_id) for s in group] for group in groups] == [[(0, 0), (0, 1)], [(3, 0), (3, 1)]]
    judged = [
        samples.judge(groups[0], judge="lengths", scores=[1.0, 2.0], duels=[(0, 1, 0.5)]),
        samples.judge(groups[1], judge="lengths", skipped="no verdict"),
    ]
    path = write(tmp_path / "judged.jsonl", judged)
    found = list(samples.read_judged(path))
    assert found == [judged[0]._replace(duels=[[0, 1, 0.5]]), judged[1]]
    record = json.loads(path.read_text().splitlines()[0])
    assert record["outputs"] == [" fine"] * 2 and record["models"] == "ab" * 32 and record["prompt_id"] == 0


BAD = {
    "prompt": [None, 3, [], [{"content": SECRET}]],
    "prompt_id": [-1, 1.5, True, "0"],
    "prompt_ids": [[], [1, -1], [1.0], "1", [2**31]],
    "ids": [[1, 2], [1, 2, 3, None], None],
    "logps": [[-1.0, math.nan, 0.0], [-math.inf, 0.0, 0.0], [0.0, 0.0, 0.1], ["-1", 0.0, 0.0], [0.0]],
    "temperature": [-1, math.nan, None],
    "finished": [1, None],
    "output": [None, 3],
    "model": [7],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_a_bad_record_is_refused_by_file_line_and_key(tmp_path, key, value):
    record = samples.as_record(one()) | {key: value}
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(samples.as_record(one())) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=rf"samples\.jsonl, line 2: .*'{key}'") as error:
        list(samples.read(path))
    assert SECRET not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match=f"'{key}'"):
        samples.as_record(one()._replace(**{key: value}))


@pytest.mark.parametrize("key", ["scores", "duels", "outputs", "ids", "finished", "skipped", "judge"])
def test_a_bad_judgement_is_refused_too(tmp_path, key):
    good = samples.as_record(samples.judge([one(), one(sample_id=1)], judge="j", scores=[0.0, 1.0]))
    path = tmp_path / "judged.jsonl"
    for value in ([], [1], None if key not in ("scores", "duels") else [[0, 0, 1]], "x" if key != "judge" else 3):
        path.write_text(json.dumps(good | {key: value}) + "\n")
        if key == "duels" and value == []:
            continue
        with pytest.raises(ValueError, match=rf"judged\.jsonl, line 1: .*'({key}|outputs|scores|logps)'"):
            list(samples.read_judged(path))
    path.write_text(json.dumps({name: value for name, value in good.items() if name != key}) + "\n")
    if key == "duels":
        assert next(samples.read_judged(path)).duels is None
    else:
        with pytest.raises(ValueError, match=f"no '{key}'"):
            list(samples.read_judged(path))
    path.write_text(json.dumps(good | {"duels": [[0, 2, 1.0]]}) + "\n")
    with pytest.raises(ValueError, match="'duels' is not of two of 2 answers"):
        list(samples.read_judged(path))


@pytest.mark.parametrize("text", [b'{"instruction": "a', b"[]\n", b"\xff\n", b"nothing\n"])
def test_a_damaged_file_is_refused(tmp_path, text):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(json.dumps(samples.as_record(one())).encode() + b"\n" + text)
    with pytest.raises(ValueError, match="samples.jsonl") as error:
        list(samples.read(path))
    assert "cut in the middle" in str(error.value) or text.endswith(b"\n")
    with pytest.raises(ValueError, match="nowhere"):
        list(samples.read(tmp_path / "nowhere.jsonl"))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ([one(0, 0), one(0, 2)], "numbered 0, 2"),
        ([one(0, 1), one(0, 0)], "numbered 1, 0"),
        ([one(0, 0), one(0, 1, prompt_ids=[9])], "differ in prompt_ids"),
        ([one(0, 0), one(0, 1, model="other")], "differ in model"),
    ],
)
def test_answers_that_do_not_belong_together_are_refused(made, words):
    with pytest.raises(ValueError, match=words):
        list(samples.by_prompt(made))

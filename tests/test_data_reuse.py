"""Examples on disk: a second start gives the first one's, and whatever they depend on makes them anew."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from data_tools import make_tokenizer, pair

from slpojax import data
from slpojax.data import reuse

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
RECORDS = [pair(prompt=f"Go on {i}") for i in range(5)] + [pair(rejected=""), pair(chosen=" yes<eos> and on")]


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """Return what loads the records through a cache and tells whether they were read from it."""
    monkeypatch.setattr(reuse, "LEAST", 1)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))

    def run(*, path="a.jsonl", tokenizer=None, seed=0, rows="", transforms=data.CHAIN, **settings):
        source, chosen = data.Source(str(tmp_path / path), rows=rows), data.settings({"format": "pairs"} | settings)
        options = {"tokenizer": tokenizer or make_tokenizer(), "seed": seed, "transforms": transforms}
        made, report = data.load(source, chosen, **options, cache=str(tmp_path / "cache"))
        said = capsys.readouterr()
        plain, plain_report = data.load(source, chosen, **options)
        assert report == plain_report
        for field in dataclasses.fields(made):
            ours, theirs = getattr(made, field.name), getattr(plain, field.name)
            for one, other in zip(*((x if isinstance(x, tuple) else (x,)) for x in (ours, theirs)), strict=True):
                np.testing.assert_array_equal(one, other)
                assert getattr(one, "dtype", None) == getattr(other, "dtype", None)
                assert not isinstance(one, np.ndarray) or not one.flags.writeable
        text = said.out + said.err
        assert ("read from" in text) != ("written to" in text), text
        return "read from" in text

    return run


def test_a_second_start_reads_what_the_first_one_made(start, tmp_path):
    assert not start()
    assert start()
    shutil.move(tmp_path / "a.jsonl", tmp_path / "elsewhere")
    (tmp_path / "other").mkdir()
    shutil.move(tmp_path / "elsewhere", tmp_path / "other" / "a.jsonl")
    assert start(path="other/a.jsonl"), "the same records elsewhere"


def test_labels_ranks_and_scores_come_back(start, tmp_path):
    answers = [
        {"answer": text, "rank": rank} for text, rank in zip(" b| c| d".split("|"), (2.0, 1.0, 3.0), strict=True)
    ]
    ranked = [{"prompt": "\n\nHuman: ?\n\nAssistant: ", "answers": answers}] * 3
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in ranked))
    for settings in ({"candidates": 3}, {"candidates": 3, "ties": "keep"}, {"pairs": "all", "candidates": 3}):
        assert not start(format="nectar", **settings)
        assert start(format="nectar", **settings)
    assert not start(format="nectar", candidates=2, unpair=True)
    assert start(format="nectar", candidates=2, unpair=True)


def test_which_tokens_count_comes_back(start, tmp_path):
    said = [{"role": role, "content": text} for role, text in (("assistant", "a"), ("tool", "b"), ("assistant", "c"))]
    record = {"prompt": [{"role": "user", "content": "?"}], "chosen": said, "rejected": said[:1]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    options = {"format": "conversational", "tokenizer": make_tokenizer(template=CHAT)}
    assert not start(**options)
    assert not start(turns="assistant", **options)
    assert start(turns="assistant", **options) and start(**options)


def test_whatever_examples_depend_on_makes_them_anew(start, tmp_path):
    assert not start()
    assert not start(max_prompt_length=20)
    assert not start(rows="1:4")
    assert not start(seed=1)
    assert not start(tokenizer=make_tokenizer(bos=True))
    assert not start(tokenizer=make_tokenizer(template=CHAT))
    assert not start(degrade=1)
    with open(tmp_path / "a.jsonl", "a") as f:
        f.write(json.dumps(pair(prompt="one more")) + "\n")
    assert not start()
    assert start() and not start(rows="1:4") and start(rows="1:4")


def test_a_transform_or_a_format_from_outside_counts_with_its_code(start, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lab_format.py").write_text(
        "from slpojax.data.formats import pairs\n\n\ndef mine(record):\n    return pairs(record)\n"
    )
    assert not start(format="lab_format.mine")
    assert start(format="lab_format.mine")
    setup = data.Setup(data.Source(str(tmp_path / "a.jsonl")), *data.settings({}), make_tokenizer(), 0)
    key, more = (reuse.entry("x", setup, modules).key for modules in ((), ("lab_format",)))
    assert {name for name in key if key[name] != more[name]} == {"code"}


def test_a_damaged_file_is_named_and_made_anew(start, tmp_path, capsys):
    assert not start()
    [file] = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert not start()
    assert start()


def test_few_records_are_not_written(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    settings = data.settings({"format": "pairs"})
    data.load(
        data.Source(str(tmp_path / "a.jsonl")), settings, tokenizer=make_tokenizer(), cache=str(tmp_path / "cache")
    )
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reuse, "LEAST", 1)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    (tmp_path / "cache").write_text("")
    source, settings = data.Source(str(tmp_path / "a.jsonl")), data.settings({"format": "pairs"})
    made, _ = data.load(source, settings, tokenizer=make_tokenizer(), cache=str(tmp_path / "cache"))
    assert len(made) == 6 and "not kept for the next start" in "".join(capsys.readouterr())

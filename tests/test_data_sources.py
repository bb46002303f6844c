"""Every kind of source gives the same records, and what cannot be read says what to do."""

import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from slpojax.data import sources

RECORDS = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(10)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    text = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (tmp_path / "a.jsonl").write_text(text)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as f:
        f.write(text)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "a.parquet")
    whole = datasets.Dataset.from_list(RECORDS)
    whole.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": whole, "test": whole.select([0])}).save_to_disk(tmp_path / "splits")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    whole.to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    return tmp_path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "saved", "splits", "hub", "*.jsonl.gz"])
@pytest.mark.parametrize(
    ("rows", "numbers"),
    [("", range(10)), ("2:5", range(2, 5)), ("7:", range(7, 10)), (":3", range(3)), ("8:99", (8, 9))],
)
def test_every_source_gives_the_same_rows(folder, name, rows, numbers):
    source = sources.read(str(folder / name), rows=rows)
    assert source.first == numbers[0]
    assert list(source.records) == [RECORDS[i] for i in numbers]


def test_rows_are_counted_through_a_list_of_files(folder):
    source = sources.read(f"{folder}/a.jsonl, {folder}/a.parquet", rows="9:12")
    assert source == (9, [RECORDS[9], RECORDS[0], RECORDS[1]])


def test_consecutive_records_of_one_prompt_become_one():
    records = [{"prompt": p, "n": i} for i, p in enumerate("aabca")]
    assert list(sources.grouped(enumerate(records, 7), "prompt")) == [
        (7, {"prompt": ["a", "a"], "n": [0, 1]}),
        (9, {"prompt": ["b"], "n": [2]}),
        (10, {"prompt": ["c"], "n": [3]}),
        (11, {"prompt": ["a"], "n": [4]}),
    ]


def test_a_split_is_chosen(folder):
    assert len(sources.read(str(folder / "splits"), split="test").records) == 1


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("", {}, "data.path is empty"),
        ("{}/missing.jsonl", {}, "no such file: .*missing.jsonl"),
        ("{}/b.jsonl", {}, "no such file: .*b.jsonl .near: [^ ]*a.jsonl"),
        ("{}/*.none.jsonl", {}, "no such file"),
        ("{}/missing", {}, "is no folder"),
        ("{}/save", {}, "is no folder .near: [^ ]*/saved"),
        ("{}/split/train", {}, "is no folder .near: [^ ]*/splits"),
        ("{}/hub/date", {}, "is no folder .near: [^ ]*/hub/data"),
        ("{}/splits", {"split": "tset"}, "no split 'tset'; data.split must be one of train, test"),
        ("{}/a.jsonl", {"rows": "5"}, "expected 'start:stop'"),
        ("{}/a.jsonl", {"rows": "-3:"}, "expected 'start:stop'"),
        ("{}/a.jsonl", {"rows": "a:b"}, "expected 'start:stop'"),
        ("{}/a.jsonl", {"rows": "5:5"}, "stop must be greater"),
        ("{}/a.jsonl", {"rows": "10:"}, "hold no record"),
        ("{}/broken.jsonl", {}, "line 2 is not JSON"),
        ("{}/cache", {}, "holds no data set"),
        (
            "somebody/nothing",
            {},
            "on the Hugging Face hub the data set 'somebody/nothing' cannot be read.*save_to_disk",
        ),
    ],
)
def test_errors_say_what_to_do(folder, path, options, message):
    (folder / "broken.jsonl").write_text('{"a": 1}\n{"a"\n')
    (folder / "cache").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=message):
        sources.read(path.format(folder), **options)

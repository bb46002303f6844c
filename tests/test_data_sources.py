"""Every kind of source gives the same records, and what cannot be read says what to do."""

import gzip
import json
import struct

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from slpojax.data import sources

GOOD = b'{"a": 1}\n'
RECORDS = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(10)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    text = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "a.JSONL").write_text("\ufeff" + text)  # as Windows writes it
    (tmp_path / "a[1],b.json").write_text(json.dumps(RECORDS))
    (tmp_path / "a.json").write_text(json.dumps(RECORDS))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as f:
        f.write(text)
    rows = ["prompt,chosen,rejected", "", *(f'"p{i}",c{i},r{i}' for i in range(10))]
    (tmp_path / "a.csv").write_text("\ufeff" + "\r\n".join(rows))  # as Excel writes it
    with gzip.open(tmp_path / "b.csv.gz", "wt") as f:
        f.write("\n".join(rows) + "\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "a.parquet")
    whole = datasets.Dataset.from_list(RECORDS)
    whole.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": whole, "test": whole.select([0])}).save_to_disk(tmp_path / "splits")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    whole.to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    return tmp_path


NAMES = [
    "a.csv",
    "b.csv.gz",
    "a.jsonl",
    "a.jsonl.gz",
    "a.parquet",
    "saved",
    "splits",
    "hub",
    "*.jsonl.gz",
    "a.JSONL",
    "a.json",
    "a[1],b.json",
]


@pytest.mark.parametrize("name", NAMES)
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
    assert source[:2] == (9, [RECORDS[9], RECORDS[0], RECORDS[1]])
    assert [sources.where(source, row).rpartition("/")[2] for row in (9, 10)] == [
        "a.jsonl, line 10)",
        "a.parquet, record 1)",
    ]


def test_a_row_is_called_by_its_line_where_lines_are_blank(folder):
    (folder / "b.jsonl").write_text('\n\n{"a": 1}\r\n \n{"a": 2}\n')
    source = sources.read(f"{folder}/b.jsonl,{folder}/a.json")
    assert [r.get("a") for r in source.records] == [1, 2, *[None] * 10]
    assert sources.where(source, 1) == f"row 1 ({folder}/b.jsonl, line 5)"
    assert sources.where(source, 4) == f"row 4 ({folder}/a.json, item 3)"
    assert sources.counted(source) == (
        "; row 0 is line 3 of b.jsonl; row 2 is item 1 of a.json; blank lines between them, 1, are not counted"
    )
    assert sources.where(sources.read(str(folder / "saved"), rows="3:"), 4) == "row 4"


def test_a_cell_may_hold_line_breaks_and_rows_keep_the_line_on_which_they_begin(folder):
    long = "c" * 200_000
    (folder / "b.csv").write_text(f'prompt,chosen\n"one\ntwo ""three""",a\n\n"p,",{long}\n')
    source = sources.read(f"{folder}/b.csv")
    assert list(source.records) == [
        {"prompt": 'one\ntwo "three"', "chosen": "a"},
        {"prompt": "p,", "chosen": long},
    ]
    assert [sources.where(source, row).rpartition("/")[2] for row in (0, 1)] == ["b.csv, line 2)", "b.csv, line 5)"]


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
    ("name", "content", "message"),
    [
        ("b.jsonl", GOOD + '{"a": "caf\xe9"}'.encode("latin1"), "b.jsonl: line 2 is not UTF-8 .byte 0xe9 at byte 10"),
        ("b.jsonl", '{"a": 1}'.encode("utf-16"), "b.jsonl: line 1 is not UTF-8 .*write the file as UTF-8"),
        ("b.jsonl", GOOD + b'{"a": ' + b"9" * 5000 + b"}", "b.jsonl: line 2 holds a whole number of more digits"),
        ("b.jsonl", GOOD + b"[" * 200_000, "b.jsonl: line 2 is JSON nested too deeply"),
        ("b.jsonl", GOOD + b"\0\0\0", "b.jsonl: line 2 is not JSON"),
        (
            "b.jsonl.gz",
            gzip.compress(GOOD * 500, mtime=0)[:-30],
            "b.jsonl.gz: cannot be read behind line .*EOFError.*copy it again",
        ),
        ("b.jsonl.gz", GOOD, "b.jsonl.gz: cannot be read behind line 0 .BadGzipFile"),
        ("b.json", GOOD + GOOD, "b.json is not JSON .Extra data .*with an object on every line ends with .jsonl"),
        ("b.json", GOOD, "b.json: expected one array of objects"),
        ("b.parquet", GOOD, "b.parquet: cannot be read behind record 0 .ArrowInvalid"),
        (
            "b.csv",
            b"a,b\n1,2\n1,2,3\n",
            "b.csv: line 3 has 3 fields, line 1 names 2; a text with a comma.* double quotes",
        ),
        ("b.csv", b'a,b\n1,"2\n3"\n1\n', "b.csv: line 4 has 1 fields"),
        ("b.csv", b'a,b\n1,"2\n', "b.csv: the row that begins on line 2 is no CSV"),
        ("b.csv", b'a,b\n1,"2"3\n', "b.csv: the row that begins on line 2 is no CSV"),
        ("b.csv", b"a,a\n1,2\n", "b.csv: line 1 of a CSV file names its fields, each by another name"),
        ("b.csv", b"a,\n1,2\n", "b.csv: line 1 of a CSV file names its fields"),
        ("b.csv", b"", "b.csv: line 1 of a CSV file names its fields"),
        ("b.csv", b"a,b\n1,\xe9\n", "b.csv is not UTF-8 behind line .*write the file as UTF-8"),
        ("b.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 500, mtime=0)[:-30], "b.csv.gz: cannot be read behind line"),
        ("b.txt", GOOD, "b.txt is a file of another kind; expected .* files: .jsonl"),
        ("state.json", GOOD, "holds no data set that can be read .*save_to_disk"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        sources.read(str(tmp_path if name == "state.json" else tmp_path / name))


def test_a_saved_data_set_whose_offsets_leave_its_file_is_refused_before_it_is_read(folder):
    [file] = (folder / "saved").glob("*.arrow")
    content = bytearray(file.read_bytes())
    at = content.index(struct.pack("<4i", 0, 2, 4, 6))  # where the texts of two letters begin
    content[at + 4 : at + 8] = struct.pack("<i", 2**30)
    file.write_bytes(content)
    with pytest.raises(ValueError, match="saved is damaged .ArrowInvalid"):
        sources.read(str(folder / "saved"))


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
        ("{}/a.jsonl", {"rows": "9" * 5000 + ":"}, "999... *.: expected 'start:stop'"),
        ("{}/a.jsonl,{}/b.txt", {}, "data.path lists files, of which .*b.txt is none that can be read"),
        ("{}/" + "n" * 5000, {}, "is no folder"),
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
        sources.read(path.replace("{}", str(folder)), **options)

"""Where records come from: the hub, a saved data set, a folder in hub layout, or files.

Knows paths, splits and row numbers; knows no field of a record, but the name of the one by which it joins records.
"""

import array
import bisect
import codecs
import csv
import glob
import gzip
import hashlib
import io
import itertools
import json
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from slpojax import log, places, wording
from slpojax.places import fetching

FILES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".csv.gz", ".parquet")
_LOCAL = "a folder written by datasets.save_to_disk, a folder in hub layout, or files: " + ", ".join(FILES)
_DIGITS = 18  # of a row number
_SHOWN = 4  # files that a line names
_CELL = 2**31 - 1  # characters of a cell, as many as the csv module takes anywhere

_DAMAGED = (OSError, EOFError, zlib.error)  # what reading a file of bytes raises

Record: TypeAlias = Mapping[str, Any]


class Cell(str):
    """A value of a CSV file: text, which may spell a number."""

    __slots__ = ()


class File(NamedTuple):
    """Where the records of one file are.

    Attributes:
        name: its path.
        first: the row of its first record that was taken.
        unit: what is counted in it: "line", "item" or "record".
        numbers: of the line, item or record that each row is, from 1.
    """

    name: str
    first: int
    unit: str
    numbers: "array.array[int]"


class Records(NamedTuple):
    """Consecutive records of a source, the number (from 0) of the first of them in it, and the files they are in."""

    first: int
    records: Sequence[Record]
    files: tuple[File, ...] = ()


def read(path: str, *, split: str = "train", rows: str = "") -> Records:
    """Read records.

    Args:
        path: one of
            `owner/name` on the hub, `owner/name/folder` for a folder of it (`Anthropic/hh-rlhf/helpful-base`),
            `owner/name:config` for one of its configurations;
            a folder, written by `datasets.save_to_disk` or in hub layout;
            files: JSON lines (.jsonl, .jsonl.gz), one JSON array (.json), CSV whose first line names the fields (.csv,
            .csv.gz), or .parquet. A comma-separated list, whose rows are counted through, blank lines left out; globs
            allowed. Files and folders may lie in a bucket (gs://, s3://): what they hold is fetched.
        split: the split of a hub or saved data set; files have none.
        rows: "start:stop", the rows to take, counted from 0; "" takes all.

    Raises:
        ValueError: a malformed range, an unknown split, a missing or damaged file, a hub out of reach, or no rows at
            all.
    """
    start, stop = parse_range(rows)
    if not path.strip(", "):
        raise ValueError(f"data.path is empty; give a hub name, {_LOCAL}")
    path = _here(path)
    parts = _parts(path)
    are_files = [part.lower().endswith(FILES) for part in parts]
    if all(are_files):
        found = _take(_files(parts), start, stop)
    elif any(are_files):
        other = parts[are_files.index(False)]
        raise ValueError(f"data.path lists files, of which {_clip(other)} is none that can be read; expected {_LOCAL}")
    else:
        data = _folder(pathlib.Path(os.path.expanduser(path)), split) if _is_local(path) else _hub(path, split)
        begin, end = min(start, len(data)), len(data) if stop is None else min(stop, len(data))
        found = Records(start, _whole(data.select(range(begin, max(begin, end))), path))
    if not len(found.records):
        raise ValueError(f"{_clip(path)}: rows {rows or ':'} hold no record; the source ends before row {start}")
    return found


def digest(path: str, *, split: str = "train") -> str | None:
    """SHA-256 of the files that hold the records of a source, wherever they lie: of their bytes and their names.

    Args:
        path: as `read` takes it.
        split: of a hub data set.

    Returns:
        The digest; None where the records lie in no file, or in one that cannot be read, which `read` says.

    Raises:
        ValueError: as `read` does for what is not there.
    """
    path = _here(path)
    parts = _parts(path)
    if parts and all(part.lower().endswith(FILES) for part in parts):
        files = [(os.path.basename(name), name) for name in _names(parts)]
    elif _is_local(path):
        folder = os.path.expanduser(path)
        walked = sorted(os.path.join(at, name) for at, _, names in os.walk(folder) for name in names)
        files = [(os.path.relpath(name, folder), name) for name in walked if os.path.isfile(name)]
    elif path:
        files = [(os.path.basename(file["filename"]), file["filename"]) for file in _hub(path, split).cache_files]
    else:
        return None
    sha = hashlib.sha256()
    try:
        for name, file in files:
            with open(file, "rb") as f:
                sha.update(f"{name}\0{hashlib.file_digest(f, 'sha256').hexdigest()}\0".encode())
    except OSError:
        return None
    return sha.hexdigest() if files else None


def _here(path: str) -> str:
    """Return a path in which copies on this machine stand for what lies in buckets."""
    if not any(places.is_bucket(part.strip()) for part in path.split(",")):
        return path
    urls = [url for part in path.split(",") for url in fetching.listed(part.strip(), "data.path")]
    found = [fetching.fetched(url, log.say, key="data.path") if places.is_bucket(url) else url for url in urls]
    return ",".join(map(str, found))


def _parts(path: str) -> list[str]:
    """Return the files or patterns that a path lists; itself where it is one."""
    return [path] if _exists(path) else [part.strip() for part in path.split(",") if part.strip()]


def numbered(found: Records) -> Iterator[tuple[int, Record]]:
    """Yield every record with its row.

    Raises:
        ValueError: a record of a data set cannot be read.
    """
    row = found.first
    try:
        for row, record in enumerate(found.records, found.first):
            yield row, record
    except Exception as error:  # whatever the data set's own reader raises
        raise ValueError(
            f"data.path: the data set cannot be read behind row {row} ({type(error).__name__}); is it whole?"
        ) from error


def where(found: Records, row: int) -> str:
    """Return what a message calls a row: "row 2 (pairs.jsonl, line 7)".

    Example:
        >>> where(Records(0, [{}, {}], (File("a.jsonl", 0, "line", array.array("q", [1, 4])),)), 1)
        'row 1 (a.jsonl, line 4)'
    """
    place = bisect.bisect_right(found.files, row, key=lambda file: file.first) - 1
    if place < 0:
        return f"row {row}"
    file = found.files[place]
    return f"row {row} ({file.name}, {file.unit} {file.numbers[row - file.first]})"


def counted(found: Records) -> str:
    """Return how rows are counted through files, in words, where it is not the line less one; else ""."""

    def of(file: File) -> str:
        return f"; row {file.first} is {file.unit} {file.numbers[0]} of {os.path.basename(file.name)}"

    blank = sum(
        file.numbers[-1] - file.numbers[0] + 1 - len(file.numbers) for file in found.files if file.unit == "line"
    )
    listed = "".join(map(of, found.files[:_SHOWN])) if len(found.files) > 1 or blank else ""
    more = f"; and {len(found.files) - _SHOWN} further files" if len(found.files) > _SHOWN else ""
    return f"{listed}{more}" + (f"; blank lines between them, {blank:,}, are not counted" if blank else "")


def grouped(numbered: Iterable[tuple[int, Record]], field: str) -> Iterator[tuple[int, Record]]:
    """Join consecutive records of the same `field`: into one record of lists, under the number of the first of them."""
    for _, run in itertools.groupby(numbered, key=lambda pair: pair[1].get(field)):
        numbers, records = zip(*run, strict=True)
        yield numbers[0], {name: [record.get(name) for record in records] for name in records[0]}


def parse_range(rows: str) -> tuple[int, int | None]:
    """Return (start, stop) of "start:stop"; either may be left out."""
    start, colon, stop = rows.partition(":")
    numbers = [text.strip() for text in (start, stop)]
    if (rows and not colon) or any(text and not (text.isdecimal() and len(text) <= _DIGITS) for text in numbers):
        raise ValueError(
            f"data.rows={_clip(rows)!r}: expected 'start:stop' with numbers counted from 0, such as '0:2000' or '2000:'"
        )
    first, last = int(numbers[0] or 0), int(numbers[1]) if numbers[1] else None
    if last is not None and last <= first:
        raise ValueError(f"data.rows={rows!r}: stop must be greater than start")
    return first, last


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))  # unlike pathlib's: no name is too long or too strange


def _is_local(path: str) -> bool:
    return path.startswith(("/", "./", "../", "~")) or _exists(path)


def _clip(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def _near(path: str, *hub: str) -> str:
    return wording.near_paths(path, *hub) if len(path) < 256 and "\0" not in path else ""


def _files(parts: Sequence[str]) -> Iterator[tuple[str, str, Iterator[tuple[int, Record]]]]:
    """Yield name, unit and numbered records of every file, after all names were found."""
    for name in _names(parts):
        low = name.lower()
        if low.endswith(".parquet"):
            yield name, "record", _parquet(name)
        elif low.endswith(".json"):
            yield name, "item", _json(name)
        elif low.endswith((".csv", ".csv.gz")):
            yield name, "line", _csv(name)
        else:
            yield name, "line", _jsonl(name)


def _names(parts: Sequence[str]) -> list[str]:
    """Return the files that are asked for, those of a pattern in the order of their names."""
    names: list[str] = []
    for part in parts:
        part = os.path.expanduser(part)
        pattern = glob.has_magic(part) and not os.path.exists(part)
        files = sorted(glob.glob(part)) if pattern else [part]
        if not files or not all(map(os.path.isfile, files)):
            near = "" if pattern else _near(part)
            raise ValueError(f"data.path: no such file: {_clip(part)}{near} (looked from {pathlib.Path.cwd()})")
        names += files
    return names


def _take(files: Iterable[tuple[str, str, Iterator[tuple[int, Record]]]], start: int, stop: int | None) -> Records:
    """Read the rows from `start` to before `stop`, counted through all files."""
    records: list[Record] = []
    taken: list[File] = []
    row = 0
    for name, unit, numbered_records in files:
        file = File(name, max(row, start), unit, array.array("q"))
        for number, record in itertools.islice(numbered_records, None if stop is None else stop - row):
            if row >= start:
                records.append(record)
                file.numbers.append(number)
            row += 1
        if file.numbers:
            taken.append(file)
        if row == stop:
            break
    return Records(start, records, tuple(taken))


def _jsonl(name: str) -> Iterator[tuple[int, Record]]:
    number = 0
    try:
        with _opened(name) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _parse_json(line, f"{name}: line {number}")
    except _DAMAGED as error:
        raise ValueError(_damaged(name, number, error)) from error


def _csv(name: str) -> Iterator[tuple[int, Record]]:
    """Yield the rows of a CSV file under the lines on which they begin; the first one names the fields."""
    csv.field_size_limit(_CELL)
    number = 1
    try:
        with _opened(name) as file:
            lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)  # type: ignore[type-var]
            names = next(lines, [])
            if not all(names) or len(set(names)) < len(names) or not names:
                raise ValueError(f"{name}: line 1 of a CSV file names its fields, each by another name; write it so")
            number = lines.line_num + 1
            for row in lines:
                if row and len(row) != len(names):
                    raise ValueError(
                        f"{name}: line {number} has {len(row)} fields, line 1 names {len(names)}; a text with a comma, "
                        "a quote or a line break stands in double quotes, and a quote inside is written twice"
                    )
                if row:
                    yield number, dict(zip(names, map(Cell, row), strict=True))
                number = lines.line_num + 1
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8 behind line {number - 1}; write the file as UTF-8") from None
    except csv.Error as error:
        raise ValueError(
            f"{name}: the row that begins on line {number} is no CSV ({error}); a text with a comma, a quote or a line "
            "break stands in double quotes, and a quote inside is written twice"
        ) from None
    except _DAMAGED as error:
        raise ValueError(_damaged(name, number - 1, error)) from error


def _opened(name: str) -> io.BufferedIOBase:
    return gzip.open(name, "rb") if name.lower().endswith(".gz") else open(name, "rb")


def _damaged(name: str, number: int, error: Exception) -> str:
    return (
        f"{name}: cannot be read behind line {number} ({type(error).__name__}); the file is damaged, ends in the "
        "middle, or is not what its name says: write or copy it again"
    )


def _json(name: str) -> Iterator[tuple[int, Record]]:
    listed = _parse_json(pathlib.Path(name).read_bytes(), name)
    if not isinstance(listed, list):
        raise ValueError(f"{name}: expected one array of objects; a file with an object on every line ends with .jsonl")
    return iter(enumerate(listed, 1))


def _parse_json(text: bytes, place: str) -> Any:
    """Return what JSON text holds; `place` is what errors call it."""
    try:
        return json.loads(text.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place} is not UTF-8 (byte 0x{text[error.start]:02x} at byte {error.start}); write the file as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        lines = "; a file with an object on every line ends with .jsonl" if error.msg == "Extra data" else ""
        raise ValueError(f"{place} is not JSON ({error.msg} at character {error.pos}{lines})") from None
    except RecursionError:
        raise ValueError(f"{place} is JSON nested too deeply to be read") from None
    except ValueError:
        raise ValueError(f"{place} holds a whole number of more digits than can be read") from None


def _parquet(name: str) -> Iterator[tuple[int, Record]]:
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(name) as file:
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except Exception as error:  # whatever damaged bytes make of pyarrow
        raise ValueError(
            f"{name}: cannot be read behind record {number} ({type(error).__name__}); the file is damaged or no "
            "parquet: write or copy it again"
        ) from error


def _folder(folder: pathlib.Path, split: str) -> Any:
    import datasets

    if not os.path.isdir(folder):
        no_folder = "a file of another kind" if os.path.exists(folder) else f"no folder{_near(str(folder))}"
        raise ValueError(
            f"data.path: {_clip(str(folder))} is {no_folder}; expected a hub name, {_LOCAL} "
            f"(looked from {pathlib.Path.cwd()})"
        )
    try:
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            data = datasets.load_from_disk(folder)
        else:
            data = datasets.load_dataset(str(folder), trust_remote_code=False)
    except Exception as error:  # whatever a damaged or foreign folder makes of datasets
        raise ValueError(
            f"data.path: {folder} holds no data set that can be read ({type(error).__name__}); expected {_LOCAL}"
        ) from error
    return _split(data, split, str(folder)) if isinstance(data, datasets.DatasetDict) else data


def _hub(path: str, split: str) -> Any:
    import datasets
    import huggingface_hub

    name, _, config = path.partition(":")
    owner_name, folder = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    try:
        data = datasets.load_dataset(owner_name, config or None, data_dir=folder or None, trust_remote_code=False)
    except Exception as error:  # of the network, the hub, and whatever the data set makes of datasets
        near = _near(owner_name, huggingface_hub.constants.HF_HUB_CACHE, "datasets")
        raise ValueError(
            f"data.path={_clip(path)!r}: there is no such local path{near}, and on the Hugging Face hub the data set "
            f"{_clip(owner_name)!r}"
            f"{f' (folder {_clip(folder)})' if folder else ''} cannot be read: {type(error).__name__}: "
            f"{_clip((str(error).splitlines() or [''])[0])}. Without the hub set data.path to {_LOCAL}"
        ) from error
    return _split(data, split, path)


def _whole(data: Any, path: str) -> Any:
    """Return a data set, if its offsets stay inside of its file: Arrow itself does not look before it reads."""
    try:
        data.data.validate(full=True)
    except Exception as error:  # whatever damaged bytes make of pyarrow
        raise ValueError(
            f"data.path: {_clip(path)} is damaged ({type(error).__name__}); write or load it again"
        ) from error
    return data


def _split(data: Any, split: str, path: str) -> Any:
    if split not in data:
        raise ValueError(f"{path} has no split {split!r}; data.split must be one of {wording.few(data)}")
    return data[split]

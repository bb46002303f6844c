"""Where records come from: the hub, a saved data set, a folder in hub layout, or files.

Knows paths, splits and row numbers; knows no field of a record, but the name of the one by which it joins records.
"""

import glob
import gzip
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from slpojax import named

FILES = (".jsonl", ".jsonl.gz", ".parquet")
_LOCAL = "a folder written by datasets.save_to_disk, a folder in hub layout, or files: " + ", ".join(FILES)

Record = Mapping[str, Any]


class Records(NamedTuple):
    """Consecutive records of a source, and the number (from 0) of the first of them in it."""

    first: int
    records: Sequence[Record]


def read(path: str, *, split: str = "train", rows: str = "") -> Records:
    """Read records.

    Args:
        path: one of
            `owner/name` on the hub, `owner/name/folder` for a folder of it (`Anthropic/hh-rlhf/helpful-base`),
            `owner/name:config` for one of its configurations;
            a folder, written by `datasets.save_to_disk` or in hub layout;
            .jsonl, .jsonl.gz or .parquet files: a comma-separated list, whose rows are counted through; globs allowed.
        split: the split of a hub or saved data set; files have none.
        rows: "start:stop", the rows to take, counted from 0; "" takes all.

    Raises:
        ValueError: a malformed range, an unknown split, a missing file, a hub out of reach, or no rows at all.
    """
    start, stop = parse_range(rows)
    if not path:
        raise ValueError(f"data.path is empty; give a hub name, {_LOCAL}")
    parts = [part.strip() for part in path.split(",")]
    if all(part.endswith(FILES) for part in parts):
        records: Sequence[Record] = list(itertools.islice(_files(parts), start, stop))
    else:
        data = _folder(pathlib.Path(path).expanduser(), split) if _is_local(path) else _hub(path, split)
        records = data.select(range(min(start, len(data)), len(data) if stop is None else min(stop, len(data))))
    if not len(records):
        raise ValueError(f"{path}: rows {rows or ':'} hold no record; the source ends before row {start}")
    return Records(start, records)


def grouped(numbered: Iterable[tuple[int, Record]], field: str) -> Iterator[tuple[int, Record]]:
    """Join consecutive records of the same `field`: into one record of lists, under the number of the first of them."""
    for _, run in itertools.groupby(numbered, key=lambda pair: pair[1].get(field)):
        numbers, records = zip(*run, strict=True)
        yield numbers[0], {name: [record.get(name) for record in records] for name in records[0]}


def parse_range(rows: str) -> tuple[int, int | None]:
    """Return (start, stop) of "start:stop"; either may be left out."""
    start, colon, stop = rows.partition(":")
    numbers = [text.strip() for text in (start, stop)]
    if (rows and not colon) or any(text and not text.isdecimal() for text in numbers):
        raise ValueError(
            f"data.rows={rows!r}: expected 'start:stop' with numbers counted from 0, such as '0:2000' or '2000:'"
        )
    first, last = int(numbers[0] or 0), int(numbers[1]) if numbers[1] else None
    if last is not None and last <= first:
        raise ValueError(f"data.rows={rows!r}: stop must be greater than start")
    return first, last


def _is_local(path: str) -> bool:
    return path.startswith(("/", "./", "../", "~")) or path.endswith(FILES) or pathlib.Path(path).exists()


def _files(parts: Sequence[str]) -> Iterator[Record]:
    names: list[str] = []
    for part in parts:
        part = str(pathlib.Path(part).expanduser())
        files = sorted(glob.glob(part)) if glob.has_magic(part) else [part]
        if not files or not all(pathlib.Path(name).is_file() for name in files):
            near = "" if glob.has_magic(part) else named.near_paths(part)
            raise ValueError(f"data.path: no such file: {part}{near} (looked from {pathlib.Path.cwd()})")
        names += files
    return itertools.chain.from_iterable(
        _parquet(name) if name.endswith(".parquet") else _jsonl(name) for name in names
    )


def _jsonl(name: str) -> Iterator[Record]:
    with (gzip.open if name.endswith(".gz") else open)(name, "rt", encoding="utf-8") as lines:  # type: ignore[operator]
        for number, line in enumerate(lines):
            if line.strip():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(
                        f"{name}: line {number + 1} is not JSON ({error.msg} at character {error.pos})"
                    ) from None
                yield record


def _parquet(name: str) -> Iterator[Record]:
    from pyarrow import parquet

    for batch in parquet.ParquetFile(name).iter_batches():
        yield from batch.to_pylist()


def _folder(folder: pathlib.Path, split: str) -> Any:
    import datasets

    if not folder.is_dir():
        raise ValueError(
            f"data.path: {folder} is no folder{named.near_paths(folder)}; expected a hub name, {_LOCAL} "
            f"(looked from {pathlib.Path.cwd()})"
        )
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        data = datasets.load_from_disk(folder)
        return _split(data, split, str(folder)) if isinstance(data, datasets.DatasetDict) else data
    try:
        return _split(datasets.load_dataset(str(folder)), split, str(folder))
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"data.path: {folder} holds no data set ({type(error).__name__}); expected {_LOCAL}"
        ) from error


def _hub(path: str, split: str) -> Any:
    import datasets
    import huggingface_hub

    name, _, config = path.partition(":")
    owner_name, folder = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    try:
        data = datasets.load_dataset(owner_name, config or None, data_dir=folder or None)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        near = named.near_paths(owner_name, huggingface_hub.constants.HF_HUB_CACHE, "datasets")
        raise ValueError(
            f"data.path={path!r}: there is no such local path{near}, and on the Hugging Face hub the data set "
            f"{owner_name!r}"
            f"{f' (folder {folder})' if folder else ''} cannot be read: {type(error).__name__}: "
            f"{str(error).splitlines()[0]}. Without the hub set data.path to {_LOCAL}"
        ) from error
    return _split(data, split, path)


def _split(data: Any, split: str, path: str) -> Any:
    if split not in data:
        raise ValueError(f"{path} has no split {split!r}; data.split must be one of {', '.join(data)}")
    return data[split]

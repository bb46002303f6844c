"""Files of JSON lines between programs: filled item by item, whole once they have their name, and sealed.

`<name>.jsonl` is there only when it is whole; `<name>.made.json` beside it says what it was made from, with its digest
and that of the lines. While it is made, `<name>.part` holds a header and a line for each finished item, so a program
that was killed goes on behind the last whole one. The first host writes; all hosts agree on where to go on.
Knows files and hosts; knows nothing of what the records say.
"""

import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from slpojax import cached, log, wording

_SHOWN, _AGAIN = 60.0, 0.2  # seconds until storage shows to a host what another has written; between looks

Record: TypeAlias = Mapping[str, Any]
Records: TypeAlias = Sequence[Record]


class Stage(NamedTuple):
    """A file that a program makes.

    Attributes:
        path: of the file, `<name>.jsonl`.
        key: all that its content depends on, by name; digests for what is large.
        what: the items are, in the plural, for messages.
    """

    path: pathlib.Path
    key: Mapping[str, str]
    what: str


def fill(stage: Stage, count: int, produce: Callable[[int], Iterable[Records]]) -> str:
    """Make a file, or find it; go on where an earlier process stopped. Return the digest of its lines.

    Args:
        stage: the file.
        count: how many items there are.
        produce: (first item) -> the records of that item, of the next one, ...; the same on every host.

    Raises:
        ValueError: the file is there and was made from something else, or was changed since; names the file, what
            differs and what to do.
    """
    there = cached.from_first_host([np.array([made(stage) != ""], np.int32)])
    if there is not None and there[0][0]:
        log.say(f"{stage.path}: found, {count:,} {stage.what}")
        return _as_first(stage)
    part = stage.path.with_suffix(".part")
    done = _agreed_start(stage, part, count)
    if done:
        log.say(f"{stage.path}: goes on behind {done:,} of {count:,} {stage.what}")
    writes = jax.process_index() == 0
    if writes and not done:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(_line({"key": dict(stage.key)}))
    n = done
    for records in log.track(produce(done), count - done, stage.what):
        n += 1
        if writes:
            with part.open("a") as file:
                file.write(_line(list(records)))
    if n != count:
        raise ValueError(f"{stage.path}: {n:,} {stage.what} were made, expected {count:,}")
    if writes:
        _finish(stage, part)
    cached.from_first_host([np.zeros(1, np.int32)])  # the other hosts read what the first one has written
    return _as_first(stage)


def _as_first(stage: Stage) -> str:
    """Return the digest of the lines of a file that is there, once this host sees it: storage may show it later.

    Raises:
        ValueError: it does not see it.
    """
    until = time.monotonic() + _SHOWN
    while not (found := made(stage)):
        if time.monotonic() > until:
            raise ValueError(
                f"{stage.path}: the first host has it, and host {jax.process_index()} has not seen it for {_SHOWN:g} "
                "s; set config.output to a folder that every machine sees"
            )
        time.sleep(_AGAIN)
    return found


def made(stage: Stage) -> str:
    """Return the digest of the lines of a file that was made from `stage.key`; "" where there is none yet.

    Raises:
        ValueError: it was made from something else, or was changed since.
    """
    seal = _seal(stage.path)
    if not stage.path.exists() or not seal.exists():
        return ""
    content = read_seal(stage.path)
    changed = sorted(
        name for name in content["key"].keys() | stage.key.keys() if content["key"].get(name) != stage.key.get(name)
    )
    if changed:
        raise ValueError(
            f"{stage.path} was made from something else ({wording.few(changed)} differ); choose another folder, or "
            f"remove it and {seal.name} to make it anew"
        )
    return str(content["lines"])


def read_seal(path: pathlib.Path) -> dict[str, Any]:
    """Return what a finished file says of itself: `key`, `digest` (of the key), `lines` (digest of its content).

    Raises:
        ValueError: there is no such file, it is unfinished, or it was changed since.
    """
    seal = _seal(path)
    if not path.exists() or not seal.exists():
        part = path.with_suffix(".part").exists()
        raise ValueError(f"{path}: {'unfinished; run its program again, which goes on' if part else 'no such file'}")
    try:
        content = json.loads(seal.read_text())
        _, lines = content["key"], content["lines"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{seal} is damaged; remove it and {path.name}, and make the file anew") from error
    if _digest(path) != lines:
        raise ValueError(f"{path} was changed since it was made; remove it and {seal.name}, and make it anew")
    return content


def read(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a finished file.

    Raises:
        ValueError: as `read_seal`.
    """
    read_seal(path)
    with path.open() as file:
        for line in file:
            yield json.loads(line)


def _agreed_start(stage: Stage, part: pathlib.Path, count: int) -> int:
    """Return how many items are done, on every host what the first one finds; cut what is no whole line."""
    done = _start(stage, part, count) if jax.process_index() == 0 else 0
    answer = cached.from_first_host([np.array([done], np.int32)])
    return int(answer[0][0]) if answer is not None else done


def _start(stage: Stage, part: pathlib.Path, count: int) -> int:
    if not part.exists():
        return 0
    data = part.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.splitlines()
    try:
        same = json.loads(lines[0])["key"] == dict(stage.key)
        for line in lines[1:]:
            json.loads(line)
    except (ValueError, KeyError, TypeError, IndexError):
        same = False
    if not same or len(lines) - 1 > count:
        log.say(f"{part}: was begun from something else, or is damaged; begun anew")
        return 0
    if len(whole) < len(data):
        with part.open("r+b") as file:
            file.truncate(len(whole))
    return len(lines) - 1


def _finish(stage: Stage, part: pathlib.Path) -> None:
    """Write the file whole, then its seal, then remove the part."""
    new = stage.path.with_suffix(".new")
    with part.open() as lines, new.open("w") as file:
        next(lines)
        for line in lines:
            file.writelines(_line(record) for record in json.loads(line))
    new.replace(stage.path)
    content = {"key": dict(stage.key), "digest": cached.digest(stage.key), "lines": _digest(stage.path)}
    seal = _seal(stage.path)
    seal.with_suffix(".new").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    seal.with_suffix(".new").replace(seal)
    part.unlink()


def _seal(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".made.json")


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"

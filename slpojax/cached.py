"""One cache of computed things: files of arrays, each named by the digest of all that its arrays depend on.

`<folder>/<name>-<digest>.npz` holds the arrays and the whole key, so many keys live side by side in one folder, and
runs that share it use each other's work and never touch it. While a thing is computed, the parts that are done lie in
`<name>-<digest>.<number>.part`. Every file appears whole.

Where there are several hosts, the first one alone reads, decides and writes, and sends the others what it has read:
hosts that found different files would compute different batches, and wait for each other forever. Knows files and
hosts; knows nothing of what is cached.
"""

import ast
import functools
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import re
import struct
import tokenize
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.experimental import multihost_utils

from slpojax import places

Arrays: TypeAlias = dict[str, np.ndarray]

_KEY = "key"  # the member of a file that holds its key
_SENT = (np.dtype(np.int32), np.dtype(np.float32))

# What NumPy and zipfile raise of a file whose bytes were changed: its header may name any method, size or type.
_DAMAGED: tuple[type[Exception], ...] = (OSError, EOFError, KeyError, ValueError, RuntimeError, TypeError, SyntaxError)
_DAMAGED += (OverflowError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError)


class Entry(NamedTuple):
    """A thing that is computed once.

    Attributes:
        folder: of the cache.
        name: what it is; it begins the names of its files.
        key: everything that it depends on, by name.
        setting: the key of a configuration that names the folder.
    """

    folder: places.Path
    name: str
    key: Mapping[str, str]
    setting: str = "reference.cache"


class Stored(NamedTuple):
    """What the cache has of an entry.

    Attributes:
        whole: its arrays by name, or None.
        parts: the arrays of each part that was finished before a run stopped, by its file; empty where there is the
            whole.
        reason: why there is no whole; "" where there is.
    """

    whole: Arrays | None
    parts: dict[places.Path, Arrays]
    reason: str


def digest(key: Mapping[str, str]) -> str:
    """Return the twelve hexadecimal digits that stand for a key in the names of files.

    Example:
        >>> digest({"weights": "a", "dtype": "float32"}) == digest({"dtype": "float32", "weights": "a"})
        True
    """
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def file(entry: Entry) -> places.Path:
    """Return where the whole of an entry lies, or would lie."""
    return entry.folder / f"{entry.name}-{digest(entry.key)}.npz"


def load(entry: Entry) -> Stored:
    """Return what this host finds of an entry: the whole, or the parts that are done and why there is no more.

    Raises:
        ValueError: a folder stands where the file belongs, or a file where the folder does.
    """
    with places.reaching(entry.folder, "read", entry.setting):
        return _load(entry)


def _load(entry: Entry) -> Stored:
    path = file(entry)
    if path.is_dir() or (entry.folder.exists() and not entry.folder.is_dir()):
        at, kind = (path, "folder") if path.is_dir() else (entry.folder, "file")
        raise ValueError(f"{at} is a {kind}, where {entry.name} is to be cached; move it, or set {entry.setting}")
    whole = _read(path, entry.key)
    if whole is not None:
        return Stored(whole, {}, "")
    read = {part: _read(part, entry.key) for part in _parts(entry)}
    parts = {part: arrays for part, arrays in read.items() if arrays is not None}
    damaged = [part for part in (path, *read) if part.exists() and part not in parts]
    if damaged:
        return Stored(None, parts, f"damaged, and computed anew: {', '.join(map(str, damaged))}")
    return Stored(None, parts, "" if parts else _why_none(entry))


def save(entry: Entry, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the whole of an entry, from the first host, and remove its parts."""
    if jax.process_index() == 0:
        save_here(entry, arrays)
        with places.reaching(entry.folder, "written", entry.setting):
            for part in _parts(entry):
                part.unlink(missing_ok=True)


def save_here(entry: Entry, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the whole of an entry from this host, for what every host computes by itself and may find or not."""
    with places.reaching(entry.folder, "written", entry.setting):
        _write(file(entry), entry.key, arrays)


def save_part(entry: Entry, arrays: Mapping[str, np.ndarray]) -> None:
    """Write another part of an entry, from the first host."""
    if jax.process_index() == 0:
        with places.reaching(entry.folder, "written", entry.setting):
            number = 1 + max((int(part.suffixes[-2][1:]) for part in _parts(entry)), default=-1)
            _write(file(entry).with_suffix(f".{number:04}.part"), entry.key, arrays)


def get(
    entry: Entry, make: Callable[[], Sequence[np.ndarray]], say: Callable[[str], None], *, what: str
) -> list[np.ndarray]:
    """Return arrays from the cache, or compute and cache them.

    Args:
        entry: what they are and depend on.
        make: computes them: arrays of one axis, int32 or float32. Called on every host, or on none.
        say: takes a line that says whether they were read, and if not, why.
        what: they are; it begins that line.
    """
    stored = load(entry) if jax.process_index() == 0 else Stored(None, {}, "")
    known = from_first_host(None if stored.whole is None else [*stored.whole.values()])
    say(f"{what}: {f'computing: {stored.reason}' if known is None else f'read from {entry.folder}'}")
    if known is not None:
        return known
    made = list(make())
    save(entry, {f"array{i}": array for i, array in enumerate(made)})
    return made


def from_first_host(arrays: Sequence[np.ndarray] | None) -> list[np.ndarray] | None:
    """Return on every host what the first one has: arrays of one axis, int32 or float32, or None."""
    if jax.process_count() == 1:
        return None if arrays is None else list(arrays)
    here = arrays if jax.process_index() == 0 else None

    def send(numbers: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
        # As whole numbers: hosts are summed, and a sum of floats has no minus zero.
        bits = np.asarray(numbers, np.int32) if jax.process_index() == 0 else np.zeros(count, np.int32)
        return np.asarray(multihost_utils.broadcast_one_to_all(bits))

    count = int(send([-1 if here is None else len(here)], 1)[0])
    if count < 0:
        return None
    kinds = send([_SENT.index(x.dtype) for x in here or ()], count)
    sizes = send([x.size for x in here or ()], count)
    sent = []
    for i, (kind, size) in enumerate(zip(kinds, sizes, strict=True)):
        bits = send(here[i].view(np.int32) if here else (), size) if size else np.zeros(0, np.int32)
        sent.append(bits.view(_SENT[kind]))
    return sent


@functools.cache
def code_digest(*modules: str) -> str:
    """SHA-256 of the code of modules and of all that they import from their own top-level package.

    Put it into the key of what this code computes: a fix then makes it anew. Comments and docstrings do not count.

    Args:
        *modules: full names; a package stands for all its modules.
    """
    seen: dict[str, str] = {}
    waiting, found = list(modules), set(modules)
    while waiting:
        name = waiting.pop()
        for path in _sources(name):
            if str(path) in seen:
                continue
            seen[str(path)], names = _parsed(path.read_text(encoding="utf-8"), name.partition(".")[0])
            imported = names - found
            waiting += sorted(imported)
            found |= imported
    return hashlib.sha256("".join(sorted(seen.values())).encode()).hexdigest()


@functools.cache
def _parsed(text: str, package: str) -> tuple[str, frozenset[str]]:
    """Return the digest of a file, and what it imports from a package; several digests of code share most files."""
    tree = ast.parse(text)
    return hashlib.sha256(_without_docstrings(tree).encode()).hexdigest(), frozenset(_imports(tree, package))


def module_digest(module: ModuleType) -> str:
    """SHA-256 of the code of one module, without comments and docstrings; of nothing where it has no file."""
    path = getattr(module, "__file__", None)
    text = _without_docstrings(ast.parse(pathlib.Path(path).read_text(encoding="utf-8"))) if path else ""
    return hashlib.sha256(text.encode()).hexdigest()


def _opened(path: places.Path) -> io.BufferedIOBase:
    """Open a file; of a bucket all of it, since arrays lie in no order of their reading."""
    if not places.is_bucket(path):
        return open(path, "rb")  # noqa: SIM115  closed by who reads
    try:
        return io.BytesIO(path.read_bytes())
    except Exception as error:
        if places.out_of_reach(error):  # no word about what the file holds
            raise places.OutOfReach(str(error)) from error
        raise


def _read(path: places.Path, key: Mapping[str, str]) -> Arrays | None:
    """Return the arrays of a file by name; None where there is no file, or a damaged one, or one of another key."""
    try:
        with _opened(path) as f, np.load(f) as arrays:
            if json.loads(str(arrays[_KEY])) != dict(key):
                return None
            return {name: arrays[name] for name in arrays.files if name != _KEY}
    except _DAMAGED:
        return None


def _read_key(path: places.Path) -> dict[str, str] | None:
    """Return the key of a file without reading its arrays; None where it cannot be read."""
    try:
        with _opened(path) as f, np.load(f) as arrays:
            key = json.loads(str(arrays[_KEY]))
            return key if isinstance(key, dict) else None
    except _DAMAGED:
        return None


def _write(path: places.Path, key: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file: under another name first, which no other process uses, then rename it.

    An object of a bucket is there as a whole or not at all.
    """
    content: dict[str, Any] = {_KEY: np.array(json.dumps(dict(key))), **arrays}
    if places.is_bucket(path):
        held = io.BytesIO()
        np.savez(held, **content)
        path.write_bytes(held.getvalue())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    with open(unfinished, "wb") as f:
        np.savez(f, **content)
    os.replace(unfinished, path)


def _parts(entry: Entry) -> list[places.Path]:
    """Return the files of an entry's own parts."""
    pattern = re.compile(re.escape(file(entry).stem) + r"\.\d+\.part")
    return sorted(path for path in _files(entry.folder) if pattern.fullmatch(path.name))


def _why_none(entry: Entry) -> str:
    """Say why an entry of which no file is there is not cached: what differs from the nearest key of its name."""
    pattern = re.compile(re.escape(entry.name) + r"-[0-9a-f]{12}\.(npz|\d+\.part)")
    others = [_read_key(path) for path in _files(entry.folder) if pattern.fullmatch(path.name)]
    differing = [
        [name for name in {**entry.key, **other} if entry.key.get(name) != other.get(name)] for other in others if other
    ]
    if not differing:
        return "nothing cached yet"
    nearest: list[str] = min(differing, key=len)
    return f"no cached {entry.name} for these settings; nearest differs in: {', '.join(nearest)}"


def _files(folder: places.Path) -> list[places.Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _sources(module: str) -> Iterator[pathlib.Path]:
    """Yield the files of a module, or of all modules of a package."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ValueError(f"no module {module!r} whose code could be part of a cache's key")
    path = pathlib.Path(found.origin)
    yield from sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]


def _imports(tree: ast.Module, package: str) -> list[str]:
    """Return what a module imports from a top-level package, by full names."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from slpojax import head` imports a module, `from slpojax.base import Array` does not.
            inside = [f"{package}.{alias.name}" for alias in node.names]
            names += inside if node.module == package else [node.module]
    return [name for name in names if name.startswith(f"{package}.")]


def _without_docstrings(tree: ast.Module) -> str:
    """Return the code of a module without its docstrings, comments and layout."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree)

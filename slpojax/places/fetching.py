"""Copies on this machine of what buckets hold: fetched once, by what the bucket says of each object's content.

`<cache>/fetched/<scheme>/<bucket>/<name>@<digest>/` holds a file, or the files of a folder; the digest is of their
names, sizes and checksums, so that what has changed in the bucket is fetched anew. Processes of one machine fetch one
after the other, and find what is there. Knows files and objects; knows nothing of what they hold.
"""

import contextlib
import fcntl
import fnmatch
import glob
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from slpojax import places

_CHECKSUMS = ("md5Hash", "crc32c", "ETag", "etag")  # of an object, the first that its store says


def fetched(url: str, say: Callable[[str], None], *, files: Sequence[str] = (), key: str = "") -> pathlib.Path:
    """Return the copy on this machine of an object, or of all objects under a name; a local path as it is.

    Args:
        url: of a bucket's object or folder.
        say: takes a line where something was fetched, with its bytes.
        files: patterns of the files of a folder, without folders inside; () for all that is in it.
        key: of the configuration, which gave it.

    Raises:
        ValueError: there is no such thing, or the bucket cannot be read; names URL and key.
    """
    if not places.is_bucket(url):
        return pathlib.Path(url)
    url = url.rstrip("/")
    with places.reaching(url, "read", key):
        objects = _objects(url, files)
        digest = hashlib.sha256(json.dumps(sorted(map(_mark, objects.items()))).encode()).hexdigest()[:12]
        folder = places.local(url, "fetched")
        folder = folder.with_name(f"{folder.name}@{digest}")
        alone = objects.keys() == {""}
        with _locked(folder):
            if not folder.is_dir():
                size = _get(url, objects, folder)
                many = f"{len(objects):,} file{'s' * (len(objects) > 1)}, {size:,} bytes"
                say(f"{url}: fetched {many}, to {folder}")
    return folder / folder.name.rpartition("@")[0] if alone else folder


def listed(url: str, key: str = "") -> list[str]:
    """Return the URLs that a pattern finds, in the order of their names; itself where it is none.

    Raises:
        ValueError: the bucket cannot be read; names URL and key.
    """
    if not places.is_bucket(url) or not glob.has_magic(url):
        return [url]
    scheme = url.partition("://")[0]
    with places.reaching(url, "read", key):
        return [f"{scheme}://{name}" for name in sorted(places.system(url).glob(url))]


def _objects(url: str, files: Sequence[str]) -> dict[str, Any]:
    """Return what the store says of each object, by its name below the URL; "" names the URL's own."""
    system, root = places.system(url), url.partition("://")[2]
    if system.isfile(url):
        return {"": system.info(url)}
    found = {one["name"].partition("://")[2] or one["name"]: one for one in _walk(system, url, bool(files))}
    found = {name.removeprefix(f"{root}/"): one for name, one in found.items() if name.rstrip("/") != root}
    if files:
        found = {name: one for name, one in found.items() if any(fnmatch.fnmatch(name, form) for form in files)}
    if not found:
        raise FileNotFoundError("there is no such object, and no folder with files of a kind that is read")
    return found


def _walk(system: Any, url: str, flat: bool) -> Iterator[Any]:
    every = system.ls(url, detail=True) if flat else system.find(url, detail=True).values()
    yield from (one for one in every if one["type"] == "file")


def _mark(item: tuple[str, Any]) -> tuple[str, int, str]:
    """Return the name, size and checksum of an object."""
    name, one = item
    return name, int(one["size"]), next((str(one[field]) for field in _CHECKSUMS if one.get(field)), "")


def _get(url: str, objects: dict[str, Any], folder: pathlib.Path) -> int:
    """Fetch objects into a folder, whole or not at all; return their bytes. What an earlier try fetched is used."""
    part, system = folder.with_name(f"{folder.name}.part"), places.system(url)
    targets = {name: part / (name or folder.name.rpartition("@")[0]) for name in objects}
    for name, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file() or target.stat().st_size != objects[name]["size"]:
            unfinished = target.with_name(f"{target.name}.unfinished")
            system.get_file(f"{url}/{name}" if name else url, str(unfinished))
            if unfinished.stat().st_size != objects[name]["size"]:
                raise OSError(
                    f"{name or url} came with {unfinished.stat().st_size:,} bytes of {objects[name]['size']:,}"
                )
            unfinished.replace(target)
    part.rename(folder)
    return sum(one["size"] for one in objects.values())


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Let one process of this machine at a time fetch something."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

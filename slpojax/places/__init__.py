"""Places: what a path is, a place on this machine or in a bucket (gs://, s3://), and what a bucket's refusal means.

No other module asks whether a path holds "://". Copies for this machine are in `fetching`, the folder of a run that
lies in a bucket in `sending`, and who works there in `claim`. Knows URLs, and errors of the libraries behind them;
knows nothing of what lies anywhere.
"""

import contextlib
import errno
import functools
import importlib
import importlib.util
import logging
import os
import pathlib
import re
import traceback
from collections.abc import Collection, Iterator
from typing import Any, TypeAlias

from etils import epath

Path: TypeAlias = pathlib.Path | epath.Path

CACHE = "SLPOJAX_CACHE"  # environment variable: the folder of this machine for copies of what buckets hold

# Scheme -> the package that reads and writes it, what says whose account is used, and what says where it is.
STORES = {
    "gs": ("gcsfs", "`gcloud auth application-default login`, or the machine's service account"),
    "s3": ("s3fs", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the machine's role"),
}
_URL = re.compile(r"([A-Za-z][\w+.-]*):/{1,2}([^/]*)(.*)")

# Errors of this machine's disk, which say enough themselves.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
# What the libraries say, in the words of all of them: tensorstore's statuses, HTTP's, and those of the clients.
_REFUSED = r"PERMISSION_DENIED|UNAUTHENTICATED|Forbidden|AccessDenied|\b40[13]\b|Unauthorized|[Cc]redentials|denied"
_UNREACHABLE = (
    r"UNAVAILABLE|DEADLINE_EXCEEDED|Cannot connect|Could not connect|Connect|[Tt]imed? ?out|Timeout|\b(429|50[0234])\b"
    r"|RESOURCE_EXHAUSTED|disconnected|SlowDown|Internal Server Error|Service Unavailable|Bad Gateway"
)


class OutOfReach(Exception):  # noqa: N818
    """A bucket refuses or is not there; nothing is known of what it holds."""


def is_bucket(path: Any) -> bool:
    """Say whether a path lies in a bucket.

    Example:
        >>> is_bucket("gs://mine/run"), is_bucket("output/run"), is_bucket("s3://mine/data.jsonl")
        (True, False, True)
    """
    found = _URL.fullmatch(str(path))
    return bool(found and found[1] in STORES and found[2] and str(path).startswith(f"{found[1]}://"))


def path(path: Any) -> Path:
    """Return what reads and writes a path: pathlib's on this machine, etils' in a bucket."""
    if not is_bucket(path):
        return pathlib.Path(path)
    _set_up()
    return epath.Path(str(path).rstrip("/"))


def absolute(of: Any) -> Path:
    """Return the same as `path` does, on this machine from its root on."""
    found = path(of)
    return found.absolute() if isinstance(found, pathlib.Path) else found


def require(key: str, path: Any, stores: Collection[str] = ()) -> None:
    """Refuse a URL where a path is expected that this program cannot use there.

    Args:
        key: of the configuration, which gave it.
        path: of a folder or file, or a name on the hub.
        stores: schemes that are welcome there.

    Raises:
        ValueError: it is a URL of another scheme, or names no bucket.
        ImportError: the package that reads the bucket is not installed.
    """
    text = str(path)
    found = _URL.fullmatch(text)
    if not found:
        return
    if found[1] not in stores:
        here = f"a local path, or {' or '.join(f'{one}://' for one in stores)}" if stores else "a local path"
        raise ValueError(f"config.{key}={text!r}: {found[1]}:// is neither read nor written here; expected {here}")
    if not is_bucket(path) or not found[2]:
        raise ValueError(f"config.{key}={text!r} names no bucket; expected {found[1]}://BUCKET/FOLDER")
    package = STORES[found[1]][0]
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"config.{key}={text!r} needs {package}: `pip install 'slpojax[buckets]'`")


def cache() -> pathlib.Path:
    """Return the folder of this machine for copies of what buckets hold: $SLPOJAX_CACHE, or one under ~/.cache."""
    return pathlib.Path(os.environ.get(CACHE) or "~/.cache/slpojax/buckets").expanduser().absolute()


def local(url: str, kind: str) -> pathlib.Path:
    """Return where on this machine something of a bucket lies: below the cache, by its kind, scheme and name."""
    scheme, _, name = str(url).partition("://")
    return cache() / kind / scheme / name.strip("/")


def system(url: Any) -> Any:
    """Return fsspec's file system of a bucket."""
    import fsspec

    _set_up()
    scheme = str(url).partition("://")[0]
    return fsspec.filesystem(scheme, **({"finalize_on_close": True} if scheme == "gs" else {}))  # as etils asks for it


def read(url: Any) -> bytes:
    """Return what an object holds, in one request: one that is being replaced is the old or the new one."""
    return system(url).cat_file(str(url))


@functools.cache
def _set_up() -> None:
    """Have listings read anew each time, as other hosts write there, and errors said once, by who asked."""
    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)

    for name in ("gs", "gcs", "s3"):
        fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)


def out_of_reach(error: Exception | str) -> bool:
    """Say whether an error is a bucket's refusal or absence, and no word about what the bucket holds."""
    if isinstance(error, FileNotFoundError):
        return False
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    known = isinstance(error, PermissionError | ConnectionError | TimeoutError | OutOfReach)
    return known or re.search(f"{_REFUSED}|{_UNREACHABLE}", text) is not None


@contextlib.contextmanager
def reaching(url: Any, what: str = "", key: str = "") -> Iterator[None]:
    """Turn whatever the libraries raise into one line that names a bucket's URL and says what to do.

    Args:
        url: what is read or written; a path on this machine raises what it raises.
        what: is done: "read" or "written".
        key: of the configuration, which gave it; "" for none.

    Raises:
        ValueError: that line.
    """
    try:
        yield
    except Exception as error:
        of_disk = isinstance(error, OSError) and error.errno in _OF_THE_DISK
        of_bug = isinstance(error, TypeError | AttributeError | NameError | AssertionError)
        if not is_bucket(url) or of_disk or of_bug or (isinstance(error, ValueError) and _is_ours(error)):
            raise
        named = f"config.{key}={url}" if key else str(url)
        raise ValueError(f"{named} cannot be {what}: {advice(url, error.__cause__ or error)}") from error


def _is_ours(error: Exception) -> bool:
    """Say whether an error was raised in this package, which says all that there is to say."""
    raised = traceback.extract_tb(error.__traceback__)[-1].filename
    return pathlib.Path(raised).is_relative_to(pathlib.Path(__file__).parents[1])


def advice(url: Any, error: BaseException) -> str:
    """Return what a library says of a bucket, in one line, and what to do about it."""
    text = (str(error).strip().splitlines() or [""])[0].partition(" [")[0][:200]
    said, scheme = f"{type(error).__name__}: {text}", str(url).partition("://")[0]
    if isinstance(error, FileNotFoundError) or re.search(r"NOT_FOUND|NoSuch|\b404\b|does not exist", said):
        return f"{said}. Is the bucket there, and the name right?"
    if isinstance(error, PermissionError) or re.search(_REFUSED, said):
        return f"{said}. The account needs to read and write there ({STORES[scheme][1]})"
    names = ("STORAGE_EMULATOR_HOST", "AWS_ENDPOINT_URL", "TENSORSTORE_GCS_HTTP_URL")
    where = ", ".join(f"{name}={os.environ[name]}" for name in names if os.environ.get(name))
    return f"{said}. Look at the network{f' and at {where}' if where else ''}, and repeat the command"

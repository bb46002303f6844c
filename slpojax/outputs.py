"""The folder of a run: whether it can be one, and who works in it.

Knows files and hosts; knows nothing of what lies in the folder.
"""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Collection, Iterator
from typing import TextIO

import jax
import numpy as np

from slpojax import cached, log, places
from slpojax.places import claim, sending

_LOCK = "lock"


def check(path: str, key: str = "config.output", stores: Collection[str] = ()) -> places.Path:
    """Return the whole path of a folder that is to hold a run.

    Args:
        path: as it was set.
        key: by which it was set.
        stores: schemes of buckets that may hold it.

    Raises:
        ValueError: checkpoints there could not be read again, or there can be no such folder; says why.
    """
    places.require(key.removeprefix("config."), path, stores)
    folder = places.absolute(path)
    if signs := sorted(set("[]*?") & set(str(folder))):
        raise ValueError(
            f"{key}={path}: the whole path {folder} holds {' '.join(signs)}, which orbax takes for a pattern, so that "
            "checkpoints could not be read again; choose a name without"
        )
    for part in () if places.is_bucket(path) else (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise ValueError(f"{key}={path}: {part} is a file, expected a folder; choose another name, or move it away")
    return folder


@contextlib.contextmanager
def alone(path: str | pathlib.Path, *, lock: str = _LOCK, wait: str = "") -> Iterator[None]:
    """Work in a folder as the only run: the system holds a lock until the end of the process, however it ends.

    In a bucket an object stands for the lock, see `slpojax.places.claim`.

    Args:
        path: the folder, made if need be.
        lock: name of the file that is locked; it says who holds it.
        wait: what to say before waiting for another run to end; "" to refuse instead.

    Raises:
        ValueError: another run works there (says which: host, process and since when), or there can be no such folder.
    """
    file, refusal = None, ""
    with contextlib.ExitStack() as opened:
        if places.is_bucket(path):
            if jax.process_index() == 0:
                refusal = opened.enter_context(claim.held(str(path), log.say))
        elif jax.process_index() == 0:
            file, refusal = _take(pathlib.Path(path), lock, wait)
        if file:
            opened.callback(file.close)
        if not agreed(not refusal):
            raise ValueError(refusal or f"{path}: refused by the first process, which says why")
        yield


def agreed(value: bool) -> bool:
    """Return on every host what the first one says, once it has come here."""
    answer = cached.from_first_host([np.array([value], np.int32)])
    return bool(answer is not None and answer[0][0])


def publish(folder: pathlib.Path, path: places.Path) -> None:
    """Move a complete export into the bucket that it belongs to, from the first host; elsewhere it lies where it is.

    Args:
        folder: that holds it on this machine.
        path: where it belongs.

    Raises:
        ValueError: the bucket cannot be written; on every host.
    """
    if not places.is_bucket(path):
        return
    problem: ValueError | None = None
    if jax.process_index() == 0:
        try:
            sending.send_export(folder, str(path), log.say)
        except ValueError as error:
            problem = error
    if not agreed(problem is None):
        raise problem or ValueError(f"{path} was not written; the first process says why")


def _take(folder: pathlib.Path, lock: str, wait: str) -> tuple[TextIO | None, str]:
    """Return the locked file, or why there is none; ("", None) where the file system knows no locks, which is said."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / lock, "a+")  # noqa: SIM115  held until the process ends
    except OSError as error:
        return None, f"{folder} cannot hold a run: {error.strerror}; choose another --config.output"
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                holder = _holder(file)
                file.close()
                return None, (
                    f"another run works in {folder}: {holder}. Wait for it, stop it, or choose another folder: "
                    "--config.output=..."
                )
            log.say(f"{wait} ({_holder(file)})")
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        log.say(f"{folder} cannot be locked ({error.strerror}); do not start two runs in it at once")
    file.seek(0)
    file.truncate()
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    json.dump({"host": socket.gethostname(), "process": os.getpid(), "since": now}, file)
    file.flush()
    return file, ""


def _holder(file: TextIO) -> str:
    """Say who holds a lock."""
    try:
        file.seek(0)
        held = json.load(file)
        return f"process {held['process']} on {held['host']} since {held['since']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has just begun"

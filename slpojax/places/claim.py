"""One run at a time in a folder of a bucket, where no file system holds a lock: an object that its owner keeps alive.

`<folder>/lock` names host, process and a token; its owner writes it again every `BEAT` seconds. One that has not
changed for `SILENCE` seconds is nobody's: no clocks are compared, so a process that was killed on another host costs
the next one that time; on the same host its end is seen at once. Knows objects and processes.
"""

import contextlib
import datetime
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from slpojax import places
from slpojax.places.sending import LOCK, here

BEAT, SILENCE, _LOOK = 20.0, 120.0, 2.0  # seconds


@contextlib.contextmanager
def held(output: str, say: Callable[[str], None]) -> Iterator[str]:
    """Hold the folder of a run in a bucket, or yield why that cannot be; "" where it is held.

    The folder of this machine for the run's files is emptied: what is true of the run lies in the bucket.

    Args:
        output: the folder.
        say: takes a line before waiting to see whether another run is alive.
    """
    output = output.rstrip("/")
    lock, token = places.path(output) / LOCK, uuid.uuid4().hex
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    mine = {"host": socket.gethostname(), "process": os.getpid(), "since": now, "token": token}
    try:
        with places.reaching(output, "written", "output"):
            refusal = _take(output, lock, mine, say)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        yield refusal
        return
    folder = here(output)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / LOCK).write_text(json.dumps(mine))
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(lock, mine, ended), daemon=True, name="lock of the run")
    beating.start()
    try:
        yield ""
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(Exception):  # an older lock costs the next run some time, and nothing else
            if _read(lock).get("token") == token:
                lock.unlink()


def _take(output: str, lock: Any, mine: dict[str, Any], say: Callable[[str], None]) -> str:
    """Write one's own lock, or return why another run's stands."""
    found = _read(lock)
    if found and not _ended_here(found):
        who = f"process {found.get('process')} on {found.get('host')} since {found.get('since')}"
        say(f"{output} has the lock of {who}: waiting {SILENCE:.0f} s to see whether it is alive")
        begun = time.monotonic()
        while time.monotonic() - begun < SILENCE:
            time.sleep(_LOOK)
            now = _read(lock)
            if not now:
                break
            if now != found:
                return (
                    f"another run works in {output}: {who}. Wait for it, stop it, or choose another folder: "
                    "--config.output=..."
                )
    _write(lock, mine)
    time.sleep(_LOOK if found else 0)
    other = _read(lock)
    if other.get("token") != mine["token"]:
        return f"another run has begun in {output} at the same time: process {other.get('process')}"
    return ""


def _beat(lock: Any, mine: dict[str, Any], ended: threading.Event) -> None:
    """Keep a lock alive until the run ends, or another one has taken it."""
    beats = 0
    while not ended.wait(BEAT):
        with contextlib.suppress(Exception):  # the next beat may come through
            if _read(lock).get("token", mine["token"]) != mine["token"]:
                return  # whoever sends files next ends the run
            beats += 1
            _write(lock, {**mine, "beats": beats})


def _ended_here(found: dict[str, Any]) -> bool:
    """Say whether a lock is that of a process of this host which is no more, or of this one before."""
    if found.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(found["process"]), 0)
    except (ProcessLookupError, KeyError, ValueError):
        return True
    except PermissionError:
        return False
    return int(found["process"]) == os.getpid()


def _read(lock: Any) -> dict[str, Any]:
    """Return what a lock says; {} where there is none, or one that is no lock."""
    try:
        content = json.loads(places.read(lock))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}


def _write(lock: Any, content: dict[str, Any]) -> None:
    lock.write_text(json.dumps(content))

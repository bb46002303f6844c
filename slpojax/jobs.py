"""Several programs at once: started, watched, and taken up again where an earlier process was killed.

Each job writes to a log in its own folder. A job holds a lock there for as long as its process lives, whatever becomes
of the one that started it; so whoever comes next waits for it instead of starting it a second time. Knows processes and
folders; knows nothing of what the programs do.
"""

import contextlib
import dataclasses
import fcntl
import json
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from slpojax import log

LOG = "log.txt"

_LOCK, _DONE, _LAST = "job.lock", "done.json", 8192  # the last: bytes of a log in which its last line is looked for
_PAUSE, _GRACE = 0.1, 120.0  # seconds between two looks; seconds that a process has to end when it is asked to


class Job(NamedTuple):
    """A program to run.

    Attributes:
        name: for messages.
        folder: where it works; its log lies there, too.
        command: as a shell has it.
        group: of the jobs of a group one goes alone until it has ended, or `ready` says that the others may.
    """

    name: str
    folder: pathlib.Path
    command: tuple[str, ...]
    group: str


class Ended(NamedTuple):
    """A job that has ended: with which status, after how many seconds, and the last line that it said."""

    job: Job
    status: int
    seconds: float
    last: str


@dataclasses.dataclass
class _Running:
    job: Job
    process: subprocess.Popen
    lock: TextIO
    begun: float


def run(
    jobs: Sequence[Job], at_once: int, ready: Callable[[Job], bool], environment: Mapping[str, str]
) -> Iterator[Ended]:
    """Run jobs, so many at once, in their order as far as groups allow; yield each as it ends, however it ends.

    Whoever stops the iteration ends the processes that still run: they are asked to (SIGTERM), and waited for.

    Args:
        jobs: what to run.
        at_once: how many.
        ready: whether several jobs of this one's group may run beside each other by now.
        environment: of the processes.
    """
    waiting, running = list(jobs), list[_Running]()
    try:
        while waiting or running:
            while len(running) < at_once and (job := _next(waiting, running, ready)):
                waiting.remove(job)
                running.append(_start(job, environment))
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                yield _end(one)
            time.sleep(_PAUSE)
    finally:
        _stop(running)


def finished(job: Job) -> dict[str, Any] | None:
    """Return what `finish` wrote of a job, or None: it has not ended well yet."""
    try:
        return json.loads((job.folder / _DONE).read_text())
    except (FileNotFoundError, ValueError):
        return None


def finish(job: Job, content: Mapping[str, Any]) -> None:
    """Write that a job has ended well, with what it was asked, for `finished`."""
    part = job.folder / f"{_DONE}.part"
    part.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    part.replace(job.folder / _DONE)


def _next(waiting: Sequence[Job], running: Sequence[_Running], ready: Callable[[Job], bool]) -> Job | None:
    """Return the first job that may start now."""
    busy = {one.job.group for one in running}
    return next((job for job in waiting if job.group not in busy or ready(job)), None)


def _start(job: Job, environment: Mapping[str, str]) -> _Running:
    job.folder.mkdir(parents=True, exist_ok=True)
    lock = open(job.folder / _LOCK, "a")  # noqa: SIM115  held until the job's process ends, which inherits it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.say(f"{job.name}: a process that was started before still works in {job.folder}; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with open(job.folder / LOG, "a") as said:
            process = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                pass_fds=(lock.fileno(),),
                start_new_session=True,  # Ctrl-C reaches the one that started it alone, which asks it to end
            )
    except OSError:
        lock.close()
        raise
    return _Running(job, process, lock, time.perf_counter())


def _end(one: _Running) -> Ended:
    one.lock.close()
    return Ended(one.job, one.process.returncode, time.perf_counter() - one.begun, last_line(one.job.folder / LOG))


def _stop(running: Sequence[_Running]) -> None:
    for one in running:
        with contextlib.suppress(ProcessLookupError):
            one.process.send_signal(signal.SIGTERM)
    for one in running:
        try:
            one.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
        one.lock.close()


def last_line(path: pathlib.Path) -> str:
    """Return the last line of a log that says something."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _LAST))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")

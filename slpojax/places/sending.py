"""The folder of a run that lies in a bucket: files are written on this machine and sent as they change, each whole.

Metrics, configuration, traces and pictures are small files that grow, and an object cannot grow: a run writes them into
a folder of this machine, `here`, and sends those that have changed at times and before each checkpoint. Checkpoints are
no part of it; they go to the bucket themselves. Knows files; knows nothing of what they hold.
"""

import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

from slpojax import places

EVERY = 60.0  # seconds between files that are sent without a checkpoint
_TRIES = 3  # to write an object that is then not there
LOCK = "lock"
_DECISIVE = ("config.json", "adapter_config.json")  # of an export: without them a folder is no model
# Not sent with the rest: the lock has a life of its own, exports are sent whole, W&B has a server.
_APART = (LOCK, "hf", "wandb")
_KEPT = ("metrics*.jsonl", "wandb_id")  # what a run goes on with


def here(output: Any) -> pathlib.Path:
    """Return the folder of this machine in which a run writes its files: its own, or that of a run in a bucket."""
    return places.local(output, "runs") if places.is_bucket(output) else pathlib.Path(output)


@dataclasses.dataclass
class Mirror:
    """The files of a run, on this machine and in a bucket.

    Attributes:
        output: the run's folder, as it was set.
        writes: whether this host sends anything; the first one does, to buckets alone.
        sent: size and time of every file when it was sent, by its name.
        last: when something was sent.
    """

    output: str
    writes: bool
    sent: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    last: float = dataclasses.field(default_factory=time.monotonic)

    def due(self) -> None:
        """Send what has changed, if that was not done for a while."""
        if self.writes and time.monotonic() - self.last >= EVERY:
            self.send()

    def send(self) -> None:
        """Send what has changed.

        Raises:
            ValueError: the bucket cannot be written, or another run has taken the folder meanwhile.
        """
        if not self.writes:
            return
        require_mine(self.output)
        folder = here(self.output)
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            name, state = str(file.relative_to(folder)), file.stat()
            changed = (state.st_size, state.st_mtime_ns)
            if name.partition("/")[0] not in _APART and self.sent.get(name) != changed:
                send(file, f"{self.output}/{name}")
                self.sent[name] = changed
        self.last = time.monotonic()


def mirror(output: str, first: bool) -> Mirror:
    """Return the mirror of a run's folder; in a bucket, bring the files that the run goes on with.

    Args:
        output: the run's folder.
        first: whether this is the first host.
    """
    made = Mirror(output.rstrip("/"), first and places.is_bucket(output))
    if made.writes:
        folder, there = here(output), places.path(output)
        with places.reaching(output, "read", "output"):
            for pattern in _KEPT:
                for file in there.glob(pattern):
                    (folder / file.name).write_bytes(file.read_bytes())
    return made


def send(file: pathlib.Path, url: str) -> None:
    """Write a file to a bucket, and see that it is there.

    Raises:
        ValueError: it cannot be written, or is not there afterwards.
    """
    system = places.system(url)
    with places.reaching(url, "written"):
        for _ in range(_TRIES):
            content = file.read_bytes() if file.stat().st_size < 2**26 else None
            if content is not None:
                system.pipe_file(url, content)
            else:
                system.put_file(str(file), url)
            size = system.info(url)["size"] if system.exists(url) else None
            if size == (file.stat().st_size if content is None else len(content)):
                return
        raise OSError(f"it was written {_TRIES} times, and is not there; it has {size} bytes of {file.stat().st_size}")


def send_export(folder: pathlib.Path, there: str, say: Callable[[str], None]) -> None:
    """Move a complete export to a bucket: the files without which it is refused go first there and come last.

    Args:
        folder: that holds it on this machine; it is gone afterwards.
        there: where it belongs.
        say: takes a line with its bytes.

    Raises:
        ValueError: the bucket cannot be written.
    """
    files = sorted(folder.iterdir(), key=lambda file: (file.name in _DECISIVE, file.name))
    size = sum(file.stat().st_size for file in files)
    with places.reaching(there, "written"):
        system = places.system(there)
        old = [one["name"].rpartition("/")[2] for one in system.ls(there, detail=True)] if system.exists(there) else []
        for gone in sorted(old, key=lambda one: one not in _DECISIVE):
            if gone in _DECISIVE or gone not in {file.name for file in files}:
                system.rm_file(f"{there}/{gone}")
    for file in files:
        send(file, f"{there}/{file.name}")
    shutil.rmtree(folder)
    say(f"export: {len(files)} files, {size:,} bytes, in {there}")


def require_mine(output: str) -> None:
    """Refuse to write into a run's folder that another process has taken.

    Raises:
        ValueError: another one has, or the bucket cannot be read.
    """
    with places.reaching(output, "read", "output"):
        try:
            held = json.loads(places.read(f"{output}/{LOCK}"))
        except FileNotFoundError:  # removed by hand; its owner writes it again
            return
    mine = json.loads((here(output) / LOCK).read_text())
    if held["token"] != mine["token"]:
        raise ValueError(
            f"config.output={output}: process {held['process']} on {held['host']} works there since {held['since']}, "
            "as this one did not answer for some minutes; this run ends, and what it has saved is in the folder"
        )

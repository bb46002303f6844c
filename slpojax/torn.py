"""What killed processes leave behind in a folder of checkpoints: removed where it was never whole, else set aside.

Knows files; knows no state.
"""

import json
import pathlib
import shutil
import time
from collections.abc import Sequence

import jax

from slpojax import log, places

_PATIENCE = 120.0  # seconds
_MARKER = "commit_success.txt"  # orbax writes it last where nothing can be renamed


def prepare(folder: places.Path, items: Sequence[str], trash: str) -> None:
    """Make a folder of checkpoints, and tidy up in it, see `set_aside`.

    Raises:
        ValueError: there can be no such folder; says why.
    """
    if isinstance(folder, pathlib.Path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{folder} cannot hold checkpoints: {error.strerror}; move away what is there") from error
        return set_aside(folder, items, trash)
    with places.reaching(folder, "written"):
        if folder.exists():
            set_aside(folder, items, trash)


def empty(folder: places.Path, trash: str) -> None:
    """Remove what is left of checkpoints that were being deleted; in a bucket orbax deletes them at once."""
    if isinstance(folder, pathlib.Path):
        shutil.rmtree(folder / trash, ignore_errors=True)


def require_whole(path: places.Path) -> None:
    """Raise FileNotFoundError where a checkpoint in a bucket has no marker, though its arrays were written.

    The first host writes the marker once all others have written theirs; they wait for it.
    """
    if isinstance(path, pathlib.Path):
        return
    until = time.monotonic() + (0 if jax.process_index() == 0 else _PATIENCE)
    while not (path / _MARKER).exists():
        if time.monotonic() >= until:
            raise FileNotFoundError(f"{path / _MARKER} was written, and is not there")
        time.sleep(0.1)


def require_reached(folder: places.Path, step: int, reason: str) -> None:
    """Refuse to take a bucket's refusal for damage.

    Raises:
        ValueError: the reason that a checkpoint cannot be read is one of the bucket, not of the checkpoint.
    """
    if not isinstance(folder, pathlib.Path) and places.out_of_reach(reason):
        raise ValueError(f"{folder / str(step)} cannot be read: {places.advice(folder, OSError(reason))}")


def set_aside(folder: places.Path, items: Sequence[str], trash: str) -> None:
    """Remove what was being written or deleted, and rename finished checkpoints that lack a part; say so.

    Args:
        folder: of the checkpoints.
        items: that each has a folder of.
        trash: the name of what was being deleted.
    """
    empty(folder, trash)
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        if ".orbax-checkpoint-tmp" in path.name:
            log.say(f"skipped checkpoint {path.name.split('.')[0]}: the process ended while it was written")
            shutil.rmtree(path)
        elif not isinstance(path, pathlib.Path) and path.name.isdigit() and not (path / _MARKER).exists():
            log.say(f"skipped checkpoint {path.name}: the process ended while it was written, or deleted")
            path.rmtree()
        elif path.name.isdigit():
            missing = [item for item in items if not (path / item).is_dir() or not any((path / item).iterdir())]
            if missing:
                rename(path, f"it lacks {', '.join(missing)}")
            elif not _is_json(path / "metrics" / "metrics"):
                rename(path, "its metrics cannot be read")
            elif path.name != str(int(path.name)):
                rename(path, "its name is no step")


def rename(path: places.Path, reason: str) -> None:
    """Give a checkpoint a name that no reader takes for one; nothing is deleted."""
    names = (path.with_name(f"torn-{path.name}{f'-{n}' if n else ''}") for n in range(10_000))
    aside = next(name for name in names if not name.exists())
    path.rename(aside)
    log.say(f"skipped checkpoint {path.name}: {reason}; now {aside}")


def _is_json(path: places.Path) -> bool:
    try:
        json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return True

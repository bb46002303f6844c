"""What killed processes leave behind in a folder of checkpoints: removed where it was never whole, else set aside.

Knows files; knows no state.
"""

import json
import pathlib
import shutil
from collections.abc import Sequence

from slpojax import log


def set_aside(folder: pathlib.Path, items: Sequence[str], trash: str) -> None:
    """Remove what was being written or deleted, and rename finished checkpoints that lack a part; say so.

    Args:
        folder: of the checkpoints.
        items: that each has a folder of.
        trash: the name of what was being deleted.
    """
    shutil.rmtree(folder / trash, ignore_errors=True)
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        if ".orbax-checkpoint-tmp" in path.name:
            log.say(f"skipped checkpoint {path.name.split('.')[0]}: the process ended while it was written")
            shutil.rmtree(path)
        elif path.name.isdigit():
            missing = [item for item in items if not (path / item).is_dir() or not any((path / item).iterdir())]
            if missing:
                rename(path, f"it lacks {', '.join(missing)}")
            elif not _is_json(path / "metrics" / "metrics"):
                rename(path, "its metrics cannot be read")
            elif path.name != str(int(path.name)):
                rename(path, "its name is no step")


def rename(path: pathlib.Path, reason: str) -> None:
    """Give a checkpoint a name that no reader takes for one; nothing is deleted."""
    names = (path.with_name(f"torn-{path.name}{f'-{n}' if n else ''}") for n in range(10_000))
    aside = next(name for name in names if not name.exists())
    path.rename(aside)
    log.say(f"skipped checkpoint {path.name}: {reason}; now {aside}")


def _is_json(path: pathlib.Path) -> bool:
    try:
        json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return True

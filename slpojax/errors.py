"""How a program ends: with one line where the input is wrong, and with a status of its own where it was asked to end.

Knows exceptions; knows nothing of what raised them.
"""

import contextlib
import errno
import logging
import pathlib
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

from slpojax import hosts, log
from slpojax.stopping import Stopped

HERE = pathlib.Path(__file__).parent
# What a full disk, a quota, a read-only or broken file system and missing permissions make of reads and writes.
OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}


@contextlib.contextmanager
def as_lines() -> Iterator[None]:
    """End the program with one line for what the user can mend, and with a traceback for a bug.

    What this package raises is about the input, and the message says all. Anything else shows where it arose. Of
    several hosts all end, where one does, and the line is about the one that is why.
    """
    logging.getLogger("absl").addFilter(_is_no_echo)
    try:
        with _one_line():
            yield
    except SystemExit as end:
        if isinstance(end.code, str):
            hosts.fail(end.code)
            sys.stderr = _OfMainThread(sys.stderr)  # type: ignore[assignment]
        hosts.leave()
        raise
    except BaseException as error:
        hosts.failing(error)
        hosts.fail(traceback.format_exc())
        raise
    hosts.leave()


class _OfMainThread:
    """Standard error to which the main thread alone writes, so that a program's last line is the last one.

    Threads that orbax leaves behind when a save fails print traces of their own, which follow from what the line says.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what the main thread says; of other threads say that it was."""
        return self._stream.write(text) if threading.current_thread() is threading.main_thread() else len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_no_echo(record: logging.LogRecord) -> bool:
    """Say whether a record is no error of orbax's threads: each is logged with its trace, even behind the last line of
    a program, and those that matter are raised as well.
    """
    return not (record.exc_info and "orbax" in pathlib.Path(record.pathname).parts)


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except Stopped as stopped:
        log.say(str(stopped))
        raise SystemExit(stopped.status) from None
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from the newest checkpoint") from None
    except (ValueError, FloatingPointError, ImportError) as error:
        if pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(HERE):
            raise SystemExit(f"error: {error}") from error
        raise
    except OSError as error:
        if error.errno not in OF_THE_MACHINE:
            raise
        raise SystemExit(f"error: {error}; mend this and repeat the command: checkpoints are whole") from error

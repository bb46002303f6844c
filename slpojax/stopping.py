"""Signals that ask a run to end: they are noted, and the loop ends where nothing is lost.

Knows signals; knows nothing of the loop.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):  # noqa: N818  it is no error
    """A run has ended before its last step, because it was asked to.

    Attributes:
        status: what the process returns, as shells have it: 128 and the number of the signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.status = 128 + number


class Request:
    """What was asked for while `listening`: the signal, or None. Of several hosts see `slpojax.hosts.stops`."""

    def __init__(self) -> None:
        self.number: int | None = None

    def at(self, step: int) -> int | None:
        """Return the number of the signal that was heard of by a step, or None."""
        return self.number

    def leave(self) -> int | None:
        """Take no more steps; return the number of a signal for which the run is still to end: none."""
        return None


@contextlib.contextmanager
def listening() -> Iterator[Request]:
    """Note SIGTERM and SIGINT instead of dying of them; a second one is obeyed at once."""
    request = Request()
    if threading.current_thread() is not threading.main_thread():  # nobody else may set handlers
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        request.number = number
        for each in before:
            signal.signal(each, before[each])

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

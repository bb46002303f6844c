"""Signals that ask a run to end: they are noted, and the loop ends where nothing is lost.

Knows signals and hosts; knows nothing of the loop.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

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
    """What was asked for while `listening`: the signal, or None."""

    def __init__(self) -> None:
        self.number: int | None = None

    def at(self, step: int) -> int | None:
        """Return the number of the signal that all hosts have heard of by a step, or None.

        A signal reaches hosts at different times, and one of them may be the only one that gets it; they agree on the
        step, which JAX's runtime sees to.

        Args:
            step: the number of the finished step, the same on every host.
        """
        if jax.process_count() == 1:
            return self.number
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None


@contextlib.contextmanager
def listening() -> Iterator[Request]:
    """Note SIGTERM and SIGINT instead of dying of them; a second one is obeyed at once.

    With several hosts SIGTERM belongs to JAX's runtime, which tells the others, and SIGINT is turned into it.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():  # nobody else may set handlers
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        request.number = number
        for each in before:
            signal.signal(each, before[each])

    def pass_on(number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    if jax.process_count() == 1:
        before = {number: signal.signal(number, note) for number in _SIGNALS}
    else:
        before = {signal.SIGINT: signal.signal(signal.SIGINT, pass_on)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

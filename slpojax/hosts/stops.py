"""Signals that ask the hosts of a run to end: where all of them end, once one of them is asked to.

Any host may be asked, at any time, and none may end where another still waits for it. In a run's steps all save behind
the same one; between them, while a reference is computed or answers are sampled, all end at once, as what is done is
kept there. Knows hosts, signals and numbers of steps; knows no run.
"""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_ASKED, _AT, _STOP = (f"slpojax/hosts/{name}" for name in ("asked", "at/", "stop"))  # keys of the store
_LONG = 3_600_000  # milliseconds that a request for a key waits, before it is made again
_BEHIND_ALL = 2**62  # the number of a step that no run has


class Place(NamedTuple):
    """Where a host is.

    Attributes:
        loop: how many times it has begun to take steps.
        inside: whether it is taking them.
        step: the last one that it may not end behind any more.
    """

    loop: int
    inside: bool
    step: int


class Stop(NamedTuple):
    """Where all hosts end: behind a step of a loop, or at once where `loop` is 0; and the signal that asked for it."""

    number: int
    loop: int
    step: int


def said(number: int) -> str:
    """Return how a message on a signal begins."""
    return f"stopped by {signal.Signals(number).name}"


def where(number: int, places: Sequence[Place]) -> Stop:
    """Return where all hosts end.

    Args:
        number: of the signal.
        places: of all hosts; those inside of a loop go no further than the step behind theirs, until they are told.

    Example:
        >>> where(15, [Place(1, True, 4), Place(1, True, 5)])
        Stop(number=15, loop=1, step=6)
        >>> where(15, [Place(1, False, 5), Place(1, False, 5)])
        Stop(number=15, loop=0, step=0)
    """
    loop = max((place.loop for place in places if place.inside), default=0)
    if not loop:
        return Stop(number, 0, 0)
    if any(place.loop == loop and not place.inside for place in places):  # one has taken the last step
        return Stop(number, loop, _BEHIND_ALL)
    return Stop(number, loop, 1 + max(place.step for place in places if place.loop == loop))


class Stops:
    """The signals of a host, and where it ends by them.

    Args:
        client: of JAX's coordination service.
        number: of this host.
        count: of all.
        end: ends this process at once, where it is not taking steps; takes the number of the signal.
    """

    def __init__(self, client: Any, number: int, count: int, end: Callable[[int], None]):
        self._client, self._number, self._count, self._end = client, number, count, end
        self._lock = threading.Condition()
        self._place, self._asked, self._stop = Place(0, False, 0), 0, Stop(0, 0, 0)
        self._heard, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        for each in SIGNALS:
            signal.signal(each, _obey_the_next)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._hear, self._agree)]
        for thread in self._threads:
            thread.start()

    def enter(self, step: int) -> None:
        """Begin to take steps, behind one that is done."""
        with self._lock:
            self._wait()
            self._place = Place(self._place.loop + 1, True, step)

    def at(self, step: int) -> int | None:
        """Return the number of the signal for which all hosts end behind a step, or None.

        Args:
            step: that has been dispatched; every host comes here with every step.
        """
        with self._lock:
            self._wait()
            if self._stop.number and self._stop.loop == self._place.loop and step >= self._stop.step:
                return self._stop.number
            self._place = self._place._replace(step=step)
            return None

    def leave(self) -> int | None:
        """Take no more steps; return the number of a signal that came too late for one of them, or None."""
        with self._lock:
            self._wait()
            self._place = self._place._replace(inside=False)
            return self._stop.number or None

    def close(self) -> None:
        """Listen no more: the work is done."""
        signal.set_wakeup_fd(-1)
        with contextlib.suppress(Exception):  # whoever was asked in this moment
            self._client.key_value_set(_ASKED, "0")
        for thread in self._threads[1:]:
            thread.join(1.0)

    def _wait(self) -> None:
        while self._asked and not self._stop.number:
            self._lock.wait()

    def _hear(self) -> None:
        """Pass on the signals of this host, at once, whatever its main thread waits for."""
        while heard := os.read(self._heard, 1):
            if heard[0] in SIGNALS:
                with contextlib.suppress(Exception):  # another host was asked before
                    self._client.key_value_set(_ASKED, str(heard[0]))

    def _agree(self) -> None:
        """Once a host is asked, stay where this one is until all know where to end."""
        number = int(self._get(_ASKED))
        if not number:
            return
        with self._lock:
            self._asked, place = number, self._place
        self._client.key_value_set(f"{_AT}{self._number}", json.dumps(place))
        if self._number == 0:
            places = [Place(*json.loads(self._get(f"{_AT}{host}"))) for host in range(self._count)]
            self._client.key_value_set(_STOP, json.dumps(where(number, places)))
        stop = Stop(*json.loads(self._get(_STOP)))
        with self._lock:
            self._stop = stop
            self._lock.notify_all()
            ends = not stop.loop or (self._place.loop == stop.loop and not self._place.inside)
        if ends:
            self._end(number)

    def _get(self, key: str) -> str:
        while True:
            try:
                return self._client.blocking_key_value_get(key, _LONG)
            except Exception as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise


def _obey_the_next(number: int, frame: FrameType | None) -> None:
    """Note a signal, which its thread passes on; a second one is obeyed as if nobody listened."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)

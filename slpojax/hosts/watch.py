"""Whether the other hosts of a run are there: each leaves a mark every moment, and the first one judges by all marks.

A host that is gone leaves the others waiting inside of a collective, which nothing interrupts. So threads look, print
the one line that says which host it is, and end the process. They are Python's, so a mark shows that the process is
alive, whatever its main thread does, such as compiling for an hour. Marks lie in the key-value store of JAX's
coordination service, which the first host holds. Knows hosts; knows no configuration.
"""

import contextlib
import json
import os
import socket
import threading
import time
from typing import Any, NoReturn

from slpojax.hosts import marks
from slpojax.hosts.marks import Mark, Seen, Verdict
from slpojax.hosts.relay import Door, Relay

# Keys of the store: of the hosts, and of what the first one says.
_MARKS, _FIRST = "slpojax/hosts/mark/", "slpojax/hosts/first"
_MOST_BETWEEN = 2.0  # seconds between beats, at most; with little patience a tenth of it
_NEWS, _SOON = 5.0, 0.1  # seconds during which something is news, and those between beats then
_LONGEST = 300  # characters of why a host fails, for the others
_LAST = 10.0  # seconds that the first host stays for the others to read why all end


class Watch:
    """The threads of a host: one leaves marks and asks, one looks at what came of it.

    Args:
        client: of JAX's coordination service.
        number: of this host.
        count: of all.
        patience: seconds that a host may give no sign of life.
        relay: the way to the first host; None on that host itself.
        door: on the first host, where the others come in.
    """

    def __init__(
        self, client: Any, number: int, count: int, patience: float, relay: Relay | None, door: Door | None = None
    ):
        self._client, self._number, self._patience = client, number, patience
        self._relay, self._door = relay, door
        self._every = min(_MOST_BETWEEN, patience / 10)
        self._beats, self._state, self._step, self._text = 0, marks.RUNS, -1, ""
        self._said = ""  # what this host prints at its own end
        now = time.monotonic()
        self._seen = {host: Seen(Mark(0, ""), now, now, now) for host in range(count)}  # the first host's alone
        self._first, self._answered = Mark(0, ""), now  # what the others know of the first one
        self._told: Verdict | None = None
        self._verdict: Verdict | None = None
        self._stop, self._ending = threading.Event(), threading.Lock()
        self._news = now  # when something happened that others should read soon, such as that this host has come
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._look)]
        for thread in self._threads:
            thread.start()

    def note(self, step: int) -> None:
        """Note that the main thread has begun a step."""
        self._step = step

    def failing(self, why: str) -> None:
        """Tell the others that this host fails, before it tidies up, which may wait for them.

        Args:
            why: a line.
        """
        if self._state != marks.FAILED:
            self._said, self._text, self._state = f"error: {why}", why[:_LONGEST], marks.FAILED
            self._news = time.monotonic()

    def fail(self, said: str) -> NoReturn:
        """End this process with a status of 1, once it is known whether another host is why.

        Args:
            said: what is printed where none is; its last line says why, unless `failing` was told.
        """
        self.failing(said.splitlines()[-1].removeprefix("error: "))
        self._said = said
        self._end(self._wait())

    def leave(self) -> None:
        """Wait until all hosts have done their work, and stop watching; where one fails until then, end as all do."""
        self._state, self._news = marks.DONE, time.monotonic()
        verdict = self._wait()
        if verdict.line:
            self._end(verdict)
        self._part(marks.ENDED, heard=True, longest=self._patience)
        self.stop()

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()
        for thread in self._threads:
            thread.join(self._patience)
        if self._relay:
            self._relay.close()

    def _wait(self) -> Verdict:
        """Wait for what has come of the hosts; the first one, until the others can read it."""
        while self._verdict is None:
            time.sleep(self._every / 4)
        beats = self._beats
        while self._number == 0 and self._beats < beats + 2:
            time.sleep(self._every / 4)
        return self._verdict

    def _beat(self) -> None:
        """Leave a mark and ask, again and again; where the first host hangs, this hangs, too."""
        while self._rest():
            with contextlib.suppress(Exception):  # a request that fails is no answer, which the other thread sees
                self._beats += 1
                mark = Mark(self._beats, socket.gethostname(), self._state, self._step, self._text)
                self._client.key_value_set(f"{_MARKS}{self._number}", marks.write(mark), allow_overwrite=True)
                if self._number == 0:
                    self._read_marks()
                    self._client.key_value_set(_FIRST, json.dumps([mark, self._verdict]), allow_overwrite=True)
                else:
                    self._ask()
                self._answered = time.monotonic()

    def _rest(self) -> bool:
        """Wait until the next mark is due, which is soon where something has happened; False once nobody watches."""
        until = time.monotonic() + self._every
        while time.monotonic() < until and time.monotonic() >= self._news + _NEWS:
            if self._stop.wait(min(_SOON, self._every)):
                return False
        return not self._stop.wait(min(_SOON, self._every))

    def _read_marks(self) -> None:
        now, seen = time.monotonic(), dict(self._seen)
        for key, text in self._client.key_value_dir_get(_MARKS):
            host = int(key.rpartition("/")[2])
            seen[host] = marks.update(seen[host], marks.read(text), now)
        self._seen = seen

    def _ask(self) -> None:
        first, verdict = json.loads(self._client.key_value_try_get(_FIRST))
        self._first, self._told = Mark(*first), Verdict(*verdict) if verdict else None

    def _look(self) -> None:
        """Judge, again and again, and end the process where a host is why all end."""
        last, everybody = time.monotonic(), None
        while not self._stop.wait(self._every):
            now = time.monotonic()
            if now - last > self._patience / 2:  # this process was stopped: of the others it knows nothing
                self._answered = now
                self._seen = {host: one._replace(heard=now, moved=now) for host, one in self._seen.items()}
            last = now
            self._verdict = verdict = self._judge(now)
            if verdict is None:
                continue
            if everybody is None:
                self._news = everybody = now
            # The main thread is about to end by itself, unless what it tidies up waits for another host.
            if verdict.kind != marks.ALL or now - everybody > marks.STALLED * self._patience:
                self._end(verdict)

    def _judge(self, now: float) -> Verdict | None:
        if self._number == 0:
            if self._door and self._door.again and not self._verdict:
                host = min(self._door.again)
                return Verdict(marks.SILENT, marks.again(host, self._seen[host].mark))
            return self._verdict or marks.judge(self._seen, now, patience=self._patience, every=self._every)
        if self._told is None and self._relay and self._relay.lost.is_set():
            return Verdict(marks.SILENT, marks.ended(0, self._first))
        if self._told is None and now - self._answered > self._patience:
            return Verdict(marks.SILENT, marks.gone(0, self._first, self._patience))
        return self._told

    def end(self, said: str, status: int) -> None:
        """End this process, as the others do at this moment, unless it ends already; the first host says something."""
        if self._state == marks.RUNS:
            self._exit(said if self._number == 0 else "", 1, status, heard=True)

    def _end(self, verdict: Verdict) -> NoReturn:
        """Print why all end, once, and end this process."""
        of_another = verdict.kind in (marks.SILENT, marks.BEHIND)
        said = f"error: {verdict.line}" if of_another or not self._said else self._said
        if of_another and self._text:
            said += f". Here it showed as: {self._text}"
        self._exit(f"{said}\n", 2, 1, heard=self._told is not None)

    def _exit(self, said: str, to: int, status: int, *, heard: bool) -> NoReturn:
        """Print, let the others know, and end the process, whatever its other threads wait for.

        Args:
            said: a line; "" for none.
            to: the number of the file that it goes to.
            status: of the process.
            heard: whether the first host is there.
        """
        self._ending.acquire()  # and never released: one line
        with contextlib.suppress(OSError):
            os.write(to, said.encode())
        self._part(marks.ENDED, heard=heard, longest=_LAST)
        os._exit(status)

    def _part(self, state: str, *, heard: bool, longest: float) -> None:
        """Stay until the others have read of a state, and the first host until they say so; at most so many seconds."""
        self._state, self._news = state, time.monotonic()
        beats, until = self._beats, time.monotonic() + longest
        while time.monotonic() < until and (self._beats < beats + 2 and heard if self._number else self._awaited()):
            time.sleep(_SOON / 2)

    def _awaited(self) -> bool:
        """Whether a host has still to read why all end, and gives signs of life."""
        now = time.monotonic()
        others = [one for host, one in self._seen.items() if host]
        return any(one.mark.state != marks.ENDED and now - one.heard < 3 * self._every for one in others)

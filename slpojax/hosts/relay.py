"""The way to the first host, through a port of this process: it shows when the first host has ended.

JAX's client ends the process, with a stack trace, at the moment when its connection to the first host breaks. So it
connects to a port of its own process, from where bytes are passed on, and that the other end has closed is noted
instead. Knows bytes; knows nothing of what they say.
"""

import contextlib
import functools
import socket
import threading
import time
from collections.abc import Callable

_AGAIN = 0.2  # seconds between attempts to connect: the first host may start later


class Relay:
    """A port of this process whose connections lead to another address.

    Attributes:
        address: "127.0.0.1:PORT", to be connected to instead.
        lost: set once the other end has closed a connection.
    """

    def __init__(self, target: str):
        host, _, port = target.rpartition(":")
        self._target = host.strip("[]"), int(port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.lost = threading.Event()
        _begin(self._accept)

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # which wakes the thread that waits for connections
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._server.accept()
                _begin(functools.partial(self._join, here))

    def _join(self, here: socket.socket) -> None:
        """Connect to the target, once it listens, and pass on what either end sends."""
        there = None
        while there is None:
            try:
                there = socket.create_connection(self._target)
            except OSError:
                time.sleep(_AGAIN)
        with here, there:
            for end in (here, there):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            closed = threading.Event()  # by this process, as it does of a connection that came too early
            asks = _begin(functools.partial(_ask, here, there, closed))
            with contextlib.suppress(OSError):
                while data := there.recv(2**16):
                    here.sendall(data)
            if not closed.is_set():
                self.lost.set()
            asks.join()


def _ask(here: socket.socket, there: socket.socket, closed: threading.Event) -> None:
    """Pass on what this process sends, and that it has closed."""
    with contextlib.suppress(OSError):
        while data := here.recv(2**16):
            with contextlib.suppress(OSError):  # once the other end has closed, nobody hears it
                there.sendall(data)
    closed.set()
    with contextlib.suppress(OSError):
        there.shutdown(socket.SHUT_RDWR)


def _begin(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread

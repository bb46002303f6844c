"""The way to the first host: it shows when the first host has ended, and that a host has been started again.

JAX's client ends the process, with a stack trace, at the moment when its connection to the first host breaks. So it
connects to a port of its own process, from where bytes are passed on, and that the other end has closed is noted
instead. And JAX's service ends all processes where one of them comes a second time, as another process. So on the first
host, too, another port stands before it, where each connection begins with who it is from. Knows bytes; knows nothing
of what they say.
"""

import contextlib
import functools
import secrets
import socket
import threading
import time
from collections.abc import Callable

_AGAIN = 0.2  # seconds between attempts to connect: the first host may start later
_HELLO = 64  # bytes that a connection begins with: "slpojax NUMBER PROCESS", and blanks
_WELCOME, _REFUSED = b"+", b"-"
_PATIENCE = 30.0  # seconds for either end to say so much


class Door:
    """The port of the first host, whose connections lead to JAX's service on it; one process of each host is let in.

    Attributes:
        again: the hosts of which another process has come, and was refused.

    Raises:
        OSError: the port is taken, or the address is none of this machine.
    """

    def __init__(self, at: str, target: str):
        """Open it.

        Args:
            at: "HOST:PORT", where the other hosts look for JAX's service; "[::]:PORT" for all addresses.
            target: where it is.
        """
        self.again: set[int] = set()
        self._target, self._known = _place(target), dict[int, bytes]()
        host, port = _place(at)
        everywhere = host == "::"
        both = everywhere and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both or (":" in host and not everywhere) else socket.AF_INET
        self._server = socket.create_server(("" if everywhere else host, port), family=family, dualstack_ipv6=both)
        _begin(functools.partial(_accept, self._server, self._join))

    def _join(self, other: socket.socket) -> None:
        """Pass on what either end sends, if it is of a process that is welcome."""
        with other, contextlib.suppress(OSError):
            other.settimeout(_PATIENCE)
            who, number, process = [*_all_of(other, _HELLO).split(), b"", b"", b""][:3]
            if who != b"slpojax" or not number.isdigit():
                return
            if self._known.setdefault(int(number), process) != process:
                self.again.add(int(number))
                other.sendall(_REFUSED)
                return
            other.sendall(_WELCOME)
            other.settimeout(None)
            with socket.create_connection(self._target) as there:
                _pass_on(other, there)


class Relay:
    """A port of this process whose connections lead to another address.

    Attributes:
        address: "127.0.0.1:PORT", to be connected to instead.
        lost: set once the other end has closed a connection.
    """

    def __init__(self, target: str, number: int):
        """Open it.

        Args:
            target: the `Door` of the first host.
            number: of this host.
        """
        self._target = _place(target)
        self._hello = f"slpojax {number} {secrets.token_hex(8)}".ljust(_HELLO).encode()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.lost = threading.Event()
        _begin(functools.partial(_accept, self._server, self._join))

    def welcome(self) -> bool:
        """Wait for the first host; say whether it lets this process in, or knows another one of this number."""
        there = self._connect()
        if there:
            there.close()
        return there is not None

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # which wakes the thread that waits for connections
        self._server.close()

    def _connect(self) -> socket.socket | None:
        """Connect to the first host, once it listens; None where it refuses."""
        while True:
            with contextlib.suppress(OSError):
                with contextlib.ExitStack() as unless_welcome:
                    there = unless_welcome.enter_context(socket.create_connection(self._target))
                    there.settimeout(_PATIENCE)
                    there.sendall(self._hello)
                    if _all_of(there, 1) == _REFUSED:
                        return None
                    there.settimeout(None)
                    unless_welcome.pop_all()
                    return there
            time.sleep(_AGAIN)

    def _join(self, here: socket.socket) -> None:
        """Pass on what this process and the first host send; that the first host has closed is noted, and not said."""
        there = self._connect()
        if there is None:
            return here.close()
        with here, there:
            _pass_on(here, there, self.lost)


def _place(address: str) -> tuple[str, int]:
    """Return host and port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _all_of(end: socket.socket, size: int) -> bytes:
    """Read so many bytes."""
    data = b""
    while len(data) < size:
        more = end.recv(size - len(data))
        if not more:
            raise OSError("closed")
        data += more
    return data


def _accept(server: socket.socket, join: Callable[[socket.socket], None]) -> None:
    with contextlib.suppress(OSError):
        while True:
            end, _ = server.accept()
            _begin(functools.partial(join, end))


def _pass_on(here: socket.socket, there: socket.socket, lost: threading.Event | None = None) -> None:
    """Pass on what two ends send, until `here` closes; that `there` does is noted, or `here` is closed, too."""
    for end in (here, there):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    closed = threading.Event()  # by `here`, as JAX does of a connection that came too early
    asks = _begin(functools.partial(_ask, here, there, closed))
    with contextlib.suppress(OSError):
        while data := there.recv(2**16):
            here.sendall(data)
    if lost is None:
        with contextlib.suppress(OSError):
            here.shutdown(socket.SHUT_RDWR)
    elif not closed.is_set():
        lost.set()
    asks.join()


def _ask(here: socket.socket, there: socket.socket, closed: threading.Event) -> None:
    """Pass on what `here` sends, and that it has closed."""
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

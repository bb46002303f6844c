"""A real HTTP server on this machine for tests: it answers JSON with what a function makes of it, or misbehaves."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Fault(NamedTuple):
    """How an answer goes wrong: another status, raw bytes, a pause before them, or the line cut in the middle."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b"{}"
    pause: float = 0.0
    cut: bool = False
    drip: float = 0.0  # seconds between the bytes


class Loopback(NamedTuple):
    """Where it listens, and the (route, body, headers) of the requests that it has got."""

    url: str
    requests: list[tuple[str, Any, dict[str, str]]]
    stop: Callable[[], None]


@contextlib.contextmanager
def serving(respond: Callable[[str, Any], Any]) -> Iterator[Loopback]:
    """Serve `respond(route, body) -> dict | Fault` until the block ends, or `stop` is called, which cuts all lines."""
    requests: list[tuple[str, Any, dict[str, str]]] = []
    ended = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.answer(None)

        def do_POST(self) -> None:
            self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def answer(self, body: Any) -> None:
            requests.append((self.path, body, dict(self.headers)))
            found = respond(self.path, body)
            fault = found if isinstance(found, Fault) else Fault(body=json.dumps(found).encode())
            ended.wait(fault.pause)
            with contextlib.suppress(OSError):
                if ended.is_set():
                    return self.hang_up()
                self.send_response(fault.status)
                for name, value in fault.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(fault.body)))
                self.end_headers()
                if fault.cut:
                    self.wfile.write(fault.body[: len(fault.body) // 2])
                    return self.hang_up()
                for byte in fault.body if fault.drip else ():
                    self.wfile.write(bytes([byte]))
                    if ended.wait(fault.drip):
                        return self.hang_up()
                if not fault.drip:
                    self.wfile.write(fault.body)

        def hang_up(self) -> None:
            self.close_connection = True

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def stop() -> None:
        if not ended.is_set():
            ended.set()
            server.shutdown()
            server.server_close()

    try:
        yield Loopback(f"http://127.0.0.1:{server.server_address[1]}", requests, stop)
    finally:
        stop()
        time.sleep(0)

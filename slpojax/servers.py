"""Requests to a server that answers JSON with JSON: repeated with back-off, limited, timed, counted and cached.

Knows HTTP, clocks and files; knows no prompt, no judge and no engine. A request that fails for good is a `Failure`, a
value with a reason in one line, never with the text of a request or a key. Needs `pip install "slpojax[serve]"`.
"""

import collections
import contextlib
import dataclasses
import datetime
import email.utils
import hashlib
import json
import os
import pathlib
import queue
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

Json: TypeAlias = dict[str, Any]
Check: TypeAlias = Callable[[Json], str]  # answer -> what is wrong with it, "" for nothing; never text of the answer

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # what may be otherwise a moment later
_ADVICE = {
    401: "name the environment variable that holds the server's key",
    404: "the server knows no such route or model",
    422: "it refuses a field of the request",
}
_HERE = ("localhost", "127.0.0.1", "::1")  # this machine, to which no proxy leads
_LARGEST = 2**28  # bytes of an answer
_AHEAD = 4  # requests that are begun before the oldest one is done, in multiples of those in flight
_SAID, _OVERLAP = 200, 16  # characters of a server's own words that are shown; those of a request's that it may repeat


class Failure(NamedTuple):
    """Why there is no answer.

    Attributes:
        reason: in one line, for people: "timed out after 30 s (4 attempts)".
        kind: for counts: "no connection", "timed out", "status 429", "no JSON", "not as asked".
    """

    reason: str
    kind: str


@dataclasses.dataclass
class Counts:
    """What a server was asked so far.

    Attributes:
        calls: answers that came over the line.
        cached: answers that came from the disk.
        repeated: attempts that failed and were made again.
        failures: kind -> requests without an answer.
        prompt_tokens: that the server says it has read.
        completion_tokens: that it says it has written.
    """

    calls: int = 0
    cached: int = 0
    repeated: int = 0
    failures: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclasses.dataclass
class _Gate:
    """Who may begin a request, and when."""

    in_flight: threading.Semaphore
    lock: threading.Lock
    next: float = 0.0  # on the clock of time.monotonic


class Server(NamedTuple):
    """A server, with the limits that this process keeps to; made by `connect`.

    Attributes:
        url: without a route: "http://127.0.0.1:8000".
        timeout: seconds that an answer may take.
        attempts: of a request, the first one included.
        first_wait: seconds before the second attempt, at most; twice as many before each further one.
        longest_wait: seconds before any attempt, also where the server asks for more.
        in_flight: requests at once.
        per_minute: attempts that may begin in a minute; 0 for any number.
        cache: folder of answers by the content of their requests; None for none.
        counts: of this process.
    """

    url: str
    timeout: float
    attempts: int
    first_wait: float
    longest_wait: float
    in_flight: int
    per_minute: float
    cache: pathlib.Path | None
    counts: Counts
    http: Any
    gate: _Gate


def connect(
    url: str,
    *,
    key_variable: str = "",
    timeout: float = 300.0,
    attempts: int = 6,
    first_wait: float = 1.0,
    longest_wait: float = 60.0,
    in_flight: int = 8,
    per_minute: float = 0.0,
    cache: str | pathlib.Path | None = None,
) -> Server:
    """Return a server; nothing is sent yet.

    Args:
        url: http:// or https://, a host and a port; a /v1 at the end is left out, as routes begin with it.
        key_variable: the environment variable that holds the key, which goes into no file and no message; "" for none.
        timeout: see `Server`, as the others.
        attempts: 1 or more.
        first_wait: seconds.
        longest_wait: seconds.
        in_flight: 1 or more.
        per_minute: 0 for no limit.
        cache: a folder.

    Raises:
        ValueError: the URL is none or holds a password, the variable is not set, or a library is missing.
    """
    try:
        import httpx2
        import tenacity  # noqa: F401, found missing here and not after an hour
    except ImportError as error:
        raise ValueError(f'a server is asked by httpx2 and tenacity ({error}); pip install "slpojax[serve]"') from None
    try:
        parts = urlsplit(url)
        good, secret = parts.scheme in ("http", "https") and bool(parts.hostname), parts.password is not None
        _ = parts.port
    except ValueError:
        good, secret = False, False
    if secret:
        raise ValueError("the URL of a server holds a password; name an environment variable that holds the key")
    if not good:
        raise ValueError(f"{url!r} is no URL of a server; expected http://HOST:PORT")
    headers = {}
    if key_variable:
        key = os.environ.get(key_variable, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise ValueError(f"the environment variable {key_variable}, which should hold a server's key, holds none")
        headers["Authorization"] = f"Bearer {key}"
    limits = httpx2.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    options = {
        "timeout": timeout,
        "limits": limits,
        "headers": headers,
        "trust_env": parts.hostname not in _HERE,
    }
    http = httpx2.Client(verify=parts.scheme == "https", **options)  # certificates take a moment to load
    gate = _Gate(threading.Semaphore(in_flight), threading.Lock())
    weakref.finalize(gate, http.close)  # its lines are closed once nobody has the server any more
    return Server(
        url.rstrip("/").removesuffix("/v1"),
        timeout,
        attempts,
        first_wait,
        longest_wait,
        in_flight,
        per_minute,
        pathlib.Path(cache) if cache else None,
        Counts(),
        http,
        gate,
    )


def post(server: Server, route: str, body: Json, check: Check | None = None) -> Json:
    """Return the answer to one request.

    Args:
        server: of `connect`.
        route: "/v1/completions".
        body: of the request.
        check: says what is wrong with an answer, which is then asked for again, as after an error.

    Raises:
        ValueError: there is none.
    """
    return _or_raise(server, route, ask(server, route, body, check))


def get(server: Server, route: str) -> Json:
    """Return what a route such as /v1/models says; as `post`, without a cache."""
    return _or_raise(server, route, _asked(server, "GET", route, None, None))


def _or_raise(server: Server, route: str, answer: Json | Failure) -> Json:
    if isinstance(answer, Failure):
        raise ValueError(f"{server.url}{route}: {answer.reason}")
    return answer


def ask(server: Server, route: str, body: Json, check: Check | None = None) -> Json | Failure:
    """Return the answer to one request, from the cache where it is there; or why there is none. See `post`."""
    file = server.cache and _file(server.cache, server.url, route, body)
    if file and (known := _read(file)) is not None and not (check and check(known)):
        with server.gate.lock:
            server.counts.cached += 1
        return known
    answer = _asked(server, "POST", route, body, check)
    if file and not isinstance(answer, Failure):
        _write(file, answer)
    return answer


def post_many(
    server: Server,
    route: str,
    bodies: Iterable[Json],
    check: Check | None = None,
    *,
    check_of: Callable[[Json], Check] | None = None,
) -> Iterator[tuple[int, Json | Failure]]:
    """Yield (number of the request, its answer or why there is none), in the order of the requests.

    `server.in_flight` of them are asked at once, a few ahead of the one that is waited for, so a slow answer holds up
    none. Who stops to iterate waits for nothing.

    Args:
        server: of `connect`.
        route: of all.
        bodies: of the requests; read as they are needed.
        check: see `post`.
        check_of: (body) -> the check of its answer, where they differ.
    """
    tasks: queue.SimpleQueue[tuple[Json, Future] | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        while (task := tasks.get()) is not None and not stopped.is_set():
            body, future = task
            try:
                future.set_result(ask(server, route, body, check_of(body) if check_of else check))
            except BaseException as error:  # raised where it is waited for
                future.set_exception(error)

    # Not those of concurrent.futures, for which the end of the program waits, however long an answer takes.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(server.in_flight)]
    waiting: collections.deque[Future] = collections.deque()
    done = 0
    try:
        for thread in threads:
            thread.start()
        for body in bodies:
            waiting.append(Future())
            tasks.put((body, waiting[-1]))
            if len(waiting) >= _AHEAD * server.in_flight:
                yield done, waiting.popleft().result()
                done += 1
        while waiting:
            yield done, waiting.popleft().result()
            done += 1
    finally:
        stopped.set()
        for _ in threads:
            tasks.put(None)


def counted(server: Server) -> str:
    """Return a line on what a server was asked: calls, tokens and failures."""
    c = server.counts
    parts = [f"{c.calls:,} answers"]
    parts += [f"{c.cached:,} from the cache"] * bool(c.cached)
    parts += [f"{c.prompt_tokens:,} tokens read and {c.completion_tokens:,} written"] * bool(c.prompt_tokens)
    parts += [f"{c.repeated:,} attempts repeated"] * bool(c.repeated)
    if c.failures:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(c.failures.items()))
        parts.append(f"{c.failures.total():,} requests failed ({kinds})")
    return f"{server.url}: {', '.join(parts)}"


class _Problem(Exception):
    """An attempt without an answer."""

    def __init__(self, reason: str, kind: str, *, again: bool = True, wait: float = 0.0):
        super().__init__(reason)
        self.reason, self.kind, self.again, self.wait = reason, kind, again, wait


def _asked(server: Server, method: str, route: str, body: Json | None, check: Check | None) -> Json | Failure:
    """Ask until there is an answer, a reason that will not change, or no attempt left."""
    import tenacity

    jitter = tenacity.wait_random_exponential(multiplier=server.first_wait, max=server.longest_wait)

    def wait(state: Any) -> float:
        with server.gate.lock:
            server.counts.repeated += 1
        return max(jitter(state), min(state.outcome.exception().wait, server.longest_wait))

    attempts = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(server.attempts),
        wait=wait,
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, _Problem) and error.again),
        reraise=True,
    )
    try:
        answer = attempts(_attempt, server, method, route, body, check)
    except _Problem as problem:
        tried = attempts.statistics.get("attempt_number", 1)
        with server.gate.lock:
            server.counts.failures[problem.kind] += 1
        return Failure(problem.reason + f" ({tried} attempts)" * (tried > 1), problem.kind)
    usage = answer.get("usage")
    with server.gate.lock:
        server.counts.calls += 1
        if isinstance(usage, Mapping):
            read, written = (usage.get(f"{name}_tokens") for name in ("prompt", "completion"))
            server.counts.prompt_tokens += read if isinstance(read, int) else 0
            server.counts.completion_tokens += written if isinstance(written, int) else 0
    return answer


def _attempt(server: Server, method: str, route: str, body: Json | None, check: Check | None) -> Json:
    """Ask once.

    Raises:
        _Problem: there is no answer, or not the one that was asked for.
    """
    with server.gate.in_flight:
        _wait_for_turn(server)
        status, headers, content = _exchange(server, method, route, body)
    if status >= 300:
        advice = f"; {_ADVICE[status]}" if status in _ADVICE else ""
        reason = f"the server answered {status}{advice}{_words(content, server, body)}"
        asked_to_wait = _retry_after(headers.get("retry-after", ""))
        if status in (429, 503) and asked_to_wait:  # nobody asks before that
            with server.gate.lock:
                server.gate.next = max(server.gate.next, time.monotonic() + min(asked_to_wait, server.longest_wait))
        raise _Problem(reason, f"status {status}", again=status in AGAIN, wait=asked_to_wait)
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        raise _Problem(f"the answer of {len(content):,} bytes is no JSON", "no JSON") from None
    if not isinstance(answer, dict):
        raise _Problem("the answer is no JSON object", "no JSON")
    if wrong := check(answer) if check else "":
        raise _Problem(f"the answer is not what was asked for: {wrong}", "not as asked")
    return answer


def _exchange(server: Server, method: str, route: str, body: Json | None) -> tuple[int, Mapping[str, str], bytes]:
    """Return status, headers and content of an answer that came whole and in time."""
    import httpx2

    late = time.monotonic() + server.timeout
    slow = _Problem(f"timed out after {server.timeout:g} s", "timed out")
    try:
        with server.http.stream(method, f"{server.url}{route}", json=body) as answer:
            content = bytearray()
            for piece in answer.iter_bytes():
                content += piece
                if time.monotonic() > late:  # the client's own limit is between two pieces
                    raise slow
                if len(content) > _LARGEST:
                    raise _Problem(f"the answer is longer than {_LARGEST:,} bytes", "no JSON", again=False)
            return answer.status_code, answer.headers, bytes(content)
    except httpx2.TimeoutException:
        raise slow from None
    except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
        raise _Problem(f"the connection failed ({type(error).__name__})", "no connection") from None


def _wait_for_turn(server: Server) -> None:
    """Wait until an attempt may begin: no more of them in a minute than allowed, none while the server wants none."""
    gap = 60.0 / server.per_minute if server.per_minute else 0.0
    with server.gate.lock:
        now = time.monotonic()
        begin = max(now, server.gate.next)
        server.gate.next = begin + gap if gap or server.gate.next > now else server.gate.next
    time.sleep(begin - now)


def _retry_after(text: str) -> float:
    """Return the seconds that a header asks to wait: a number, or a date."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(text)) if text.strip().lower() not in ("nan", "inf", "infinity") else 0.0
    with contextlib.suppress(ValueError, TypeError):
        date = email.utils.parsedate_to_datetime(text)
        return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())
    return 0.0


def _words(content: bytes, server: Server, body: Json | None) -> str:
    """Return what a server says of an error, in brackets; nothing where it repeats the request, or the key."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        said = json.loads(content)
        inner = said.get("error", said)
        told = inner if isinstance(inner, str) else inner.get("message") or inner.get("detail") or ""
        told = " ".join(str(told if isinstance(told, str) else "")[:_SAID].split())
        key = server.http.headers.get("Authorization", "").rpartition(" ")[2]
        sent = " ".join((json.dumps(body, ensure_ascii=False) + key).split())
        pieces = (told[i : i + _OVERLAP] for i in range(max(1, len(told) - _OVERLAP + 1)))
        whole = any(text in told for text in (key, *_texts(body)) if text.strip())
        if told and told.isprintable() and not whole and not any(piece in sent for piece in pieces):
            return f" ({told})"
    return ""


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of a request, but for the names that it calls things by."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from () if name in ("model", "role") else _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _file(cache: pathlib.Path, url: str, route: str, body: Json) -> pathlib.Path:
    """Return where the answer to a request lies, or would lie."""
    digest = hashlib.sha256(json.dumps([url, route, body], sort_keys=True).encode()).hexdigest()
    return cache / digest[:2] / f"{digest}.json"


def _read(file: pathlib.Path) -> Json | None:
    try:
        answer = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # none yet, or a damaged one: asked again
        return None
    return answer if isinstance(answer, dict) else None


def _write(file: pathlib.Path, answer: Json) -> None:
    """Write an answer: under a name of its own first, as several processes may share the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}")
    unfinished.write_text(json.dumps(answer), encoding="utf-8")
    os.replace(unfinished, file)

"""Real servers of object stores on this machine for tests, which misbehave when they are asked to.

`gcs` is an emulator of Google's store, `s3` moto's of Amazon's; both hold in memory what they are given.
"""

import contextlib
import functools
import logging
import os
import pathlib
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

# Or gcsfs asks by another protocol what kind of bucket it is, for minutes. It looks when it is imported.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

REFUSED, BROKEN, LOST = "refused", "broken", "lost"
BUCKET = "bucket"


class Store(NamedTuple):
    """A server.

    Attributes:
        url: of its bucket.
        environment: by which programs find it and are let in.
        files: () -> name -> bytes of all objects.
        put: (name, bytes) -> None.
        remove: name -> None.
        rule: a list of one function, (method, path) -> how the answer goes wrong: `REFUSED`, `BROKEN`, `LOST` (a write
            is answered as done, and is not), or seconds to wait before it; None for not at all.
        requests: (method, path) of all that was asked, and ("WRITE", name) of what was written.
    """

    url: str
    environment: dict[str, str]
    files: Callable[[], dict[str, bytes]]
    put: Callable[[str, bytes], Any]
    remove: Callable[[str], Any]
    rule: list[Callable[[str, str], Any]]
    requests: list[tuple[str, str]]

    def send(self, folder: pathlib.Path, to: str) -> None:
        """Put the files of a folder below a name."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.put(f"{to}/{file.relative_to(folder)}", file.read_bytes())


@contextlib.contextmanager
def gcs() -> Iterator[Store]:
    """Serve a bucket of Google's store."""
    from gcp_storage_emulator import server as emulator

    for name in ("gcp_storage_emulator", "gcp_storage_emulator.storage"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    rule: list[Callable[[str, str], Any]] = [lambda method, path: None]
    requests: list[tuple[str, str]] = []
    storage, losing = server._storage, [False]
    keep = storage.create_file

    def create(*args: Any, **kwargs: Any) -> Any:
        requests.append(("WRITE", args[1]))
        return None if losing[0] else keep(*args, **kwargs)

    storage.create_file = create

    class Handler(emulator.RequestHandler):
        """The emulator's, or a fault in its place."""

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, method: str, found: Callable[[], None]) -> None:
            requests.append((method, self.path))
            fault = rule[0](method, self.path)
            if isinstance(fault, float):
                time.sleep(fault)
            elif fault in (REFUSED, BROKEN):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return self.send_error(403 if fault == REFUSED else 503)
            if refusal := self.precondition(method):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return self.send_error(refusal)
            losing[0] = fault == LOST
            with contextlib.suppress(OSError):  # the other side has hung up, as killed programs do
                found()

        def precondition(self, method: str) -> int:
            """Keep to generations, as Google's store does and the emulator does not; return a status, or 0."""
            place = urllib.parse.urlsplit(self.path)
            asked = {
                name: int(values[0]) for name, values in urllib.parse.parse_qs(place.query).items() if "Gen" in name
            }
            name = urllib.parse.parse_qs(place.query).get("name", [place.path.partition(f"/b/{BUCKET}/o/")[2]])[0]
            known = storage.objects.get(BUCKET, {}).get(urllib.parse.unquote(name), {"generation": "0"})
            self.generation = known["generation"]
            if asked.get("ifGenerationMatch", int(self.generation)) != int(self.generation):
                return 412
            return 304 if asked.get("ifGenerationNotMatch", -1) == int(self.generation) else 0

        def end_headers(self) -> None:
            if self.command == "GET":
                self.send_header("x-goog-generation", getattr(self, "generation", "0"))
            super().end_headers()

        def do_GET(self) -> None:
            self.answer("GET", super().do_GET)

        def do_POST(self) -> None:
            self.answer("POST", super().do_POST)

        def do_PUT(self) -> None:
            self.answer("PUT", super().do_PUT)

        def do_DELETE(self) -> None:
            self.answer("DELETE", super().do_DELETE)

    server.start()
    http = server._api._httpd
    http.RequestHandlerClass = functools.partial(Handler, storage)
    http.handle_error = lambda *_: None
    url = f"http://127.0.0.1:{http.server_port}"
    environment = {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "FSSPEC_GCS_TOKEN": "anon",
    }

    def put(name: str, content: bytes) -> None:
        place = f"{url}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={urllib.parse.quote(name, safe='')}"
        urllib.request.urlopen(urllib.request.Request(place, data=content, method="POST")).close()

    def files() -> dict[str, bytes]:
        return {name: storage.get_file(BUCKET, name) for name in list(storage.objects.get(BUCKET, {}))}

    try:
        remove = functools.partial(storage.delete_file, BUCKET)
        yield Store(f"gs://{BUCKET}", environment, files, put, remove, rule, requests)
    finally:
        server.stop()


@contextlib.contextmanager
def s3() -> Iterator[Store]:
    """Serve a bucket of Amazon's store."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id="any",
        aws_secret_access_key="any",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=BUCKET)

    def files() -> dict[str, bytes]:
        listed = client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return {one["Key"]: client.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read() for one in listed}

    try:
        put = lambda name, content: client.put_object(Bucket=BUCKET, Key=name, Body=content)  # noqa: E731
        remove = lambda name: client.delete_object(Bucket=BUCKET, Key=name)  # noqa: E731
        yield Store(f"s3://{BUCKET}", environment, files, put, remove, [], [])
    finally:
        server.stop()

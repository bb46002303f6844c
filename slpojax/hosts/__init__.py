"""The hosts of a run: how they find each other, whether they are about to do the same, and how all end where one does.

Knows processes; knows no configuration and no data.
"""

import atexit
import contextlib
import hashlib
import importlib
import json
import os
import pathlib
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import distributed as of_jax  # its store of keys and values has no public door
from jax.experimental import multihost_utils

from slpojax.hosts import marks
from slpojax.hosts.relay import Door, Relay
from slpojax.hosts.stops import Stops, said
from slpojax.hosts.watch import Watch

# Where no cluster says it: how many processes there are, and which this is. JAX reads JAX_COORDINATOR_ADDRESS itself.
_COUNT, _NUMBER = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


_runtime: Any = importlib.import_module("jaxlib._jax")  # what JAX asks for its connection to the first host
_watch: Watch | None = None  # of this process, from `start` to `leave`, as is the next one
_stops: Stops | None = None
_LONGEST_START = 300.0  # seconds until all hosts have come together


def start(distributed: bool, patience: float) -> None:
    """Join the other hosts of a run, before anything asks for a device.

    Cloud TPU, GKE, Slurm and Open MPI say by themselves where the others are. Anywhere else the environment of each
    process does: JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0).

    Args:
        distributed: whether there are others.
        patience: seconds that one of them may give no sign of life before all end.

    Raises:
        ValueError: nothing says where they are; or only one of the two numbers is there, or it is no number.
    """
    if not distributed:
        return
    told = {name: os.environ[name] for name in (_COUNT, _NUMBER) if os.environ.get(name)}
    if told and (len(told) < 2 or not all(value.isdecimal() for value in told.values())):
        raise ValueError(
            f"mesh.distributed: the environment has {', '.join(f'{k}={v[:20]}' for k, v in told.items())}; expected "
            f"{_COUNT} and {_NUMBER}, whole numbers both, beside JAX_COORDINATOR_ADDRESS=HOST:PORT of the first process"
        )
    count, number = (int(told[name]) if told else None for name in (_COUNT, _NUMBER))
    jax.config.update("jax_enable_preemption_service", False)  # it hears of no signal between the steps
    give_up = threading.Timer(_LONGEST_START, _give_up)
    give_up.start()
    try:  # JAX's own patience is the longer one: what it does of a host that is gone is no line that helps
        with _linked() as links:
            jax.distributed.initialize(
                num_processes=count,
                process_id=number,
                initialization_timeout=int(_LONGEST_START + 60),
                heartbeat_timeout_seconds=int(2 * patience + 60),
            )
    except ValueError as error:
        raise ValueError(
            f"mesh.distributed=true, but nothing says where the other processes are: {error} On a machine of its own "
            "leave the key out; where no cluster says it, set JAX_COORDINATOR_ADDRESS=HOST:PORT of the first process, "
            f"{_COUNT} and {_NUMBER}"
        ) from error
    finally:
        give_up.cancel()
    state = of_jax.global_state
    if state.client is not None and state.num_processes > 1:
        _begin(state.client, state.process_id, state.num_processes, patience, links)


class _Links:
    """What stands between JAX's service and its clients: the door on the first host, the relay on another."""

    door: Door | None = None
    relay: Relay | None = None


@contextlib.contextmanager
def _linked() -> Iterator[_Links]:
    """Have JAX's service listen behind a door, and its client ask through a relay."""
    serve, join = _runtime.get_distributed_runtime_service, _runtime.get_distributed_runtime_client
    links, behind = _Links(), ""

    def by_door(address: str, *arguments: Any, **options: Any) -> Any:
        nonlocal behind
        with socket.create_server(("127.0.0.1", 0)) as free:
            behind = f"127.0.0.1:{free.getsockname()[1]}"
        service = serve(behind, *arguments, **options)
        try:
            links.door = Door(address, behind)
        except OSError as error:
            raise SystemExit(
                f"error: host 0 ({socket.gethostname()}) cannot wait for the others at {address}: {error.strerror}. "
                "Where another run is under way on this machine, give this one another port"
            ) from None
        return service

    def by_relay(address: str, *arguments: Any, **options: Any) -> Any:
        if number := of_jax.global_state.process_id:
            links.relay = Relay(address, number)
            if not links.relay.welcome():
                raise SystemExit(f"error: {marks.refused(number, socket.gethostname())}")
            address = links.relay.address
        return join(behind or address, *arguments, **options)

    _runtime.get_distributed_runtime_service, _runtime.get_distributed_runtime_client = by_door, by_relay
    try:
        yield links
    finally:
        _runtime.get_distributed_runtime_service, _runtime.get_distributed_runtime_client = serve, join


def _begin(client: Any, number: int, count: int, patience: float, links: _Links) -> None:
    """Begin to watch the other hosts, and to hear of signals."""
    global _watch, _stops

    def end(signal: int) -> None:
        watch.end(f"{said(signal)}: between steps; the same command goes on from what is whole\n", 128 + signal)

    _watch = watch = Watch(client, number, count, patience, links.relay, links.door)
    _stops = Stops(client, number, count, end)
    atexit.register(watch.stop)  # before JAX lets go of its client


def _give_up() -> None:
    """End this process, as not all hosts have come."""
    number, count = of_jax.global_state.process_id, of_jax.global_state.num_processes
    line = (
        f"error: host {number} of {count} ({socket.gethostname()}) has waited {_LONGEST_START:g} s for the others at "
        f"{of_jax.global_state.coordinator_address}, and not all have come. See what they print; then start all hosts "
        "with the same command"
    )
    os.write(2, f"{line}\n".encode())
    os._exit(1)


def together() -> Stops | None:
    """Return what says where all hosts end once one is asked to; None where this one is alone."""
    return _stops


def note(step: int) -> None:
    """Tell the other hosts that this one has begun a step."""
    if _watch:
        _watch.note(step)


def failing(error: BaseException) -> None:
    """Tell the other hosts that this one fails, before it tidies up."""
    if _watch:
        _watch.failing(f"{type(error).__name__}: {error}".splitlines()[0])


def fail(text: str) -> None:
    """End this process as all hosts end, with a line on the one that is why; return where there are no others.

    Args:
        text: what is printed where no other host is why.
    """
    if _watch:
        _watch.fail(text)


def leave() -> None:
    """Wait until all hosts have done their work; where one has failed, end as `fail` does."""
    global _watch, _stops
    if _watch and _stops:
        _watch.leave()
        _stops.close()
        _watch = _stops = None


def require_same(what: Mapping[str, str]) -> None:
    """Have all hosts of a run compare what they are about to work with; all of them call this at the same point.

    Args:
        what: name of a part -> a short text that is the same where the part is, such as a digest.

    Raises:
        ValueError: the hosts differ; on every host, naming hosts and parts.
    """
    if jax.process_count() == 1:
        return
    text = np.frombuffer(json.dumps(dict(what), sort_keys=True).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(text.size))
    rows = multihost_utils.process_allgather(np.pad(text, (0, int(sizes.max()) - text.size)))
    differ = differences([json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes.tolist())])
    if differ:
        raise ValueError(
            f"the {len(rows)} hosts of this run differ: {'; '.join(differ)}. Start all of them with the same command, "
            "code, models and data"
        )


def differences(of_hosts: Sequence[Mapping[str, str]]) -> list[str]:
    """Return a sentence for each host that differs from most of them (of two, from the first).

    Example:
        >>> differences([{"data": "a", "code": "c"}, {"data": "a", "code": "c"}, {"data": "b", "code": "c"}])
        ['host 2 has other data']
        >>> differences([{"seed": "1"}, {}])
        ['host 1 has other seed']
    """
    usual = json.loads(Counter(json.dumps(dict(one), sort_keys=True) for one in of_hosts).most_common(1)[0][0])
    found = []
    for number, one in enumerate(of_hosts):
        names = [name for name in sorted({*usual, *one}) if usual.get(name) != one.get(name)]
        if names:
            found.append(f"host {number} has other {', '.join(names)}")
    return found


def code() -> str:
    """Return the digest of this package's files, within milliseconds; `cached.code_digest` parses them for seconds."""
    folder, digest = pathlib.Path(__file__).parent.parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()

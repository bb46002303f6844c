"""The hosts of a run: how they find each other, and whether they are about to do the same.

Knows processes; knows no configuration and no data.
"""

import hashlib
import json
import os
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

# Where no cluster says it: how many processes there are, and which this is. JAX reads JAX_COORDINATOR_ADDRESS itself.
_COUNT, _NUMBER = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def start(distributed: bool) -> None:
    """Join the other hosts of a run, before anything asks for a device.

    Cloud TPU, GKE, Slurm and Open MPI say by themselves where the others are. Anywhere else the environment of each
    process does: JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0).

    Args:
        distributed: whether there are others.

    Raises:
        ValueError: nothing says where they are; or only one of the two numbers is there, or it is no number.
    """
    if not distributed:
        return
    said = {name: os.environ[name] for name in (_COUNT, _NUMBER) if os.environ.get(name)}
    if said and (len(said) < 2 or not all(value.isdecimal() for value in said.values())):
        raise ValueError(
            f"mesh.distributed: the environment has {', '.join(f'{k}={v[:20]}' for k, v in said.items())}; expected "
            f"{_COUNT} and {_NUMBER}, whole numbers both, beside JAX_COORDINATOR_ADDRESS=HOST:PORT of the first process"
        )
    count, number = (int(said[name]) if said else None for name in (_COUNT, _NUMBER))
    try:
        jax.distributed.initialize(num_processes=count, process_id=number)
    except ValueError as error:
        raise ValueError(
            f"mesh.distributed=true, but nothing says where the other processes are: {error} On a machine of its own "
            "leave the key out; where no cluster says it, set JAX_COORDINATOR_ADDRESS=HOST:PORT of the first process, "
            f"{_COUNT} and {_NUMBER}"
        ) from error


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
    folder, digest = pathlib.Path(__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()

"""Arrays that are kept in files with the key of what they depend on: read under an equal key alone.

Every file holds its key and appears whole. Where there are several hosts, the first one alone reads, decides and
writes, and sends the others what it has read: hosts that found different files would compute different batches, and
wait for each other forever. Knows files and hosts; knows nothing of what is kept.
"""

import json
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.experimental import multihost_utils

Arrays: TypeAlias = dict[str, np.ndarray]

_KEY = "key"
_SENT = (np.dtype(np.int32), np.dtype(np.float32))


def read(file: pathlib.Path, key: Mapping[str, str]) -> Arrays | str | None:
    """Return the arrays of a file by name, or why they are not used; None where there is no file."""
    try:
        with open(file, "rb") as f, np.load(f) as arrays:
            known = json.loads(str(arrays[_KEY]))
            changed = [name for name in key if known.get(name) != key[name]]
            if changed:
                return f"changed: {', '.join(changed)}"
            return {name: arrays[name] for name in arrays.files if name != _KEY}
    except FileNotFoundError:
        return None
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return "torn, or of another version"


def write(file: pathlib.Path, key: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file from the first host: under another name first, of this process alone, so that it appears whole."""
    if jax.process_index() != 0:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    torn = file.with_name(f"{file.name}.{os.getpid()}")
    with open(torn, "wb") as f:
        content: dict[str, Any] = {_KEY: np.array(json.dumps(key)), **arrays}
        np.savez(f, **content)
    os.replace(torn, file)


def from_first_host(arrays: Sequence[np.ndarray] | None) -> list[np.ndarray] | None:
    """Return on every host what the first one has: arrays of one axis, int32 or float32, or None."""
    if jax.process_count() == 1:
        return None if arrays is None else list(arrays)
    here = arrays if jax.process_index() == 0 else None

    def send(numbers: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
        # As whole numbers: hosts are summed, and a sum of floats has no minus zero.
        bits = np.asarray(numbers, np.int32) if jax.process_index() == 0 else np.zeros(count, np.int32)
        return np.asarray(multihost_utils.broadcast_one_to_all(bits))

    count = int(send([-1 if here is None else len(here)], 1)[0])
    if count < 0:
        return None
    kinds = send([_SENT.index(x.dtype) for x in here or ()], count)
    sizes = send([x.size for x in here or ()], count)
    sent = []
    for i, (kind, size) in enumerate(zip(kinds, sizes, strict=True)):
        bits = send(here[i].view(np.int32) if here else (), size) if size else np.zeros(0, np.int32)
        sent.append(bits.view(_SENT[kind]))
    return sent

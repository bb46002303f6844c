"""Folders that are written whole or not at all, and what goes along with a model: how every export comes about.

An export is made in a folder of its own inside of its place and moved there when it is complete. Knows names of files,
and arrays as files hold them; knows no model.
"""

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError

from slpojax import cached, folders
from slpojax.folders import ADAPTER, ADAPTER_WEIGHTS, CONFIG, GENERATION, INDEX, TOKENIZER

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # the same, as the files name them

_PART = ".part"


class Beside(NamedTuple):
    """What an export holds beside config.json and the weights.

    Attributes:
        tokenizer: a folder whose tokenizer goes along, or None.
        generation: the content of generation_config.json.
        template: the chat template that was trained with, in place of the tokenizer's; None for the tokenizer's.
        ends: ids that ended the responses trained on; generation stops there, and where it did before.
        pad: a token that the tokenizer is to pad with; "" for its own.
    """

    tokenizer: pathlib.Path | None = None
    generation: Mapping[str, Any] = {}
    template: str | None = None
    ends: tuple[int, ...] = ()
    pad: str = ""


NOTHING = Beside()


def problem(act: Callable[[], Any]) -> str:
    """Act, and return what the disk had against it; "" for nothing."""
    try:
        act()
    except (OSError, SafetensorError) as error:
        return str(error)[:200] or type(error).__name__
    return ""


def begin(path: pathlib.Path) -> pathlib.Path:
    """Return an empty folder for the parts of an export, where one that was killed may have left something."""
    part = path / _PART
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def end(path: pathlib.Path, problem: str, several: bool) -> None:
    """Tidy up behind an export, on every host; none goes on before the folder is there.

    Args:
        path: the folder.
        problem: what the disk had against it, on the host that writes; "" for nothing.
        several: whether other hosts took part, which wait for the first one here.

    Raises:
        ValueError: there was a problem.
    """
    if not several or jax.process_index() == 0:
        shutil.rmtree(path / _PART, ignore_errors=True)
    if several:
        told = cached.from_first_host([np.array([problem != ""], np.int32)])
        problem = problem or ("said by the first host" if told is None or told[0][0] else "")
    if problem:
        raise ValueError(
            f"{path} was not written ({problem}); what it held is as it was. Make room, or let it be written to, and "
            "repeat the command: it goes on where it stopped."
        )


def is_shared(leaf: Any) -> bool:
    """Whether other processes hold parts of an array, too."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def gather(tensor: Any) -> np.ndarray:
    """Bring an array to the host, to all hosts where they share it."""
    return multihost_utils.process_allgather(tensor, tiled=True) if is_shared(tensor) else np.asarray(tensor)


def stored(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """Return a tensor as a file holds it.

    Args:
        name: in the file, for the error.
        tensor: on this host.
        dtype: one of `DTYPES`.

    Raises:
        ValueError: the dtype cannot hold its numbers, or they are not finite.
    """
    with np.errstate(over="ignore"):
        held = np.ascontiguousarray(tensor, DTYPES[dtype])
    if not np.isfinite(held).all():
        said = f"{dtype} cannot hold all numbers; set config.export_dtype=float32"
        raise ValueError(f"no export: {name}: {said if np.isfinite(tensor).all() else 'its numbers are not finite'}.")
    return held


def write_tokenizer(folder: pathlib.Path, beside: Beside) -> None:
    """Copy a tokenizer's files; a chat template that was trained with takes the place of all that they hold."""
    files = [beside.tokenizer / name for name in TOKENIZER] if beside.tokenizer is not None else []
    for file in files:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    if beside.pad:
        for file in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
            if file.is_file():
                write_json(file, folders.read_json(file) | {"pad_token": beside.pad})
    if beside.template is not None:
        (folder / "chat_template.json").unlink(missing_ok=True)
        if (settings := folder / "tokenizer_config.json").is_file():
            write_json(
                settings, {key: value for key, value in folders.read_json(settings).items() if key != "chat_template"}
            )
        (folder / "chat_template.jinja").write_text(beside.template, encoding="utf-8")


def replace(path: pathlib.Path) -> None:
    """Put the files of a complete export, of a model or an adapter, in the place of an older one, of which none stays.

    Without config.json, or an adapter's, a folder is refused: they go first and come last, so that a process which is
    killed in between leaves no mixture of both that could be loaded.
    """
    decisive, others = (CONFIG, ADAPTER), (ADAPTER_WEIGHTS, INDEX, GENERATION, *TOKENIZER)
    for old in [*(path / n for n in decisive), *path.glob("model*.safetensors"), *(path / n for n in others)]:
        old.unlink(missing_ok=True)
    for file in sorted((path / _PART).iterdir(), key=lambda file: file.name in decisive):
        file.replace(path / file.name)


def write_json(file: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Write an object as a file of JSON."""
    file.write_text(json.dumps(content, indent=2) + "\n")

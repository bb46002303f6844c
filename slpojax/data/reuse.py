"""Examples that were made of the same records before: read from disk, or written there for the next start.

Knows examples, their report, and all that they depend on; knows no transform. The key is of contents: the records'
files, the settings, the tokenizer, the seed, the code of the chain and of a format from outside. Every host of a pod
reads and writes for itself, since what it finds changes no number.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from slpojax import cached, log
from slpojax.data import examples as storage
from slpojax.data import options, sources, tokenise
from slpojax.data.examples import Examples, Lengths
from slpojax.data.options import Setup
from slpojax.data.report import Candidates, Count, Labels, Report, Size

LEAST = 16 * 1024  # records from which on examples are written: fewer are tokenised within seconds

_ARRAYS = ("token", "start", "score", "row", "label", "weight", "source")
_PARTS = ("counted", "part")  # only there where some tokens do not count
_NAME, _REPORT = "examples", "report"
_LIBRARIES = ("tokenizers", "jinja2")  # whose code makes ids and texts, beside ours


def entry(folder: str, setup: Setup, modules: Iterable[str]) -> cached.Entry | None:
    """Return what stands for the examples of a source in a cache; None where nothing does.

    Args:
        folder: of the cache.
        setup: what the examples are made from.
        modules: of the transforms that make them.

    Raises:
        ValueError: the source is not there.
    """
    content = sources.digest(setup.source.path, split=setup.source.split)
    if content is None:
        return None
    form = setup.encoding.format
    outside = {form.rpartition(".")[0]} if "." in form else set()
    held = {
        "records": content,
        "split": setup.source.split,
        "rows": setup.source.rows,
        "samples": _of_file(setup.source.samples),
        "held out": str(setup.source.held_out),
        "seed": str(setup.seed),
        "tokenizer": _of_tokenizer(setup.tokenizer),
        "chat template": _of_file(setup.encoding.chat_template),
        "code": cached.code_digest(*sorted({*modules, *outside})),
    }
    held |= {name: importlib.metadata.version(name) for name in _LIBRARIES}
    chosen = options.as_dict(options.Settings(setup.encoding, setup.candidates, setup.rules))
    held |= {f"data.{name}": json.dumps(value, sort_keys=True, default=dict) for name, value in chosen.items()}
    return cached.Entry(pathlib.Path(folder).expanduser(), _NAME, held, "data.cache")


def holds(folder: str) -> bool:
    """Say whether a folder holds any examples, so that it is worth finding out which."""
    return bool(folder) and any(pathlib.Path(folder).expanduser().glob(f"{_NAME}-*.npz"))


def read(of: cached.Entry, path: str) -> tuple[Examples, Report] | None:
    """Return examples and their report as an earlier start made them, and say so; None where there are none.

    Args:
        of: what stands for them.
        path: of the records, which begins the report.

    Raises:
        ValueError: a file stands where the folder of the cache belongs, or a folder where its file does.
    """
    stored = cached.load(of)
    if stored.whole is None:
        if stored.reason.startswith("damaged"):
            log.say(f"examples: {stored.reason}")
        return None
    log.say(f"examples: read from {cached.file(of)}")
    arrays = stored.whole
    told = json.loads(str(arrays[_REPORT]))
    fields: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
    fields |= {name: arrays[name] for name in _PARTS if name in arrays}
    lengths = Lengths(arrays["prompt"], arrays["response"], fields.pop("part", None))
    fields |= {"lengths": lengths, "labelled": told["labels"] is not None}
    made = storage.frozen(Examples(**fields))
    return made, _report(told | {"source": path + told["source"]})


def write(of: cached.Entry, path: str, examples: Examples, report: Report) -> None:
    """Write examples and their report for later starts; what cannot be written stops nothing."""
    arrays = {name: getattr(examples, name) for name in _ARRAYS}
    arrays |= {"prompt": examples.lengths.prompt, "response": examples.lengths.response}
    if examples.counted is not None and examples.lengths.part is not None:
        arrays |= {"counted": examples.counted, "part": examples.lengths.part}
    told = dataclasses.replace(report, source=report.source.removeprefix(path))
    arrays[_REPORT] = np.array(json.dumps(dataclasses.asdict(told)))
    try:
        cached.save_here(of, arrays)
    except OSError as error:
        log.say(f"examples: not kept for the next start, as {of.folder} cannot be written ({error.strerror})")
        return
    log.say(f"examples: written to {cached.file(of)} for later starts")


def _report(told: dict[str, Any]) -> Report:
    """Return the report that JSON holds: tuples of names come out of it as lists."""
    return Report(
        source=told["source"],
        read=told["read"],
        kept=told["kept"],
        dropped={reason: Count(times, tuple(rows)) for reason, (times, rows) in told["dropped"].items()},
        noted={note: Count(times, tuple(rows)) for note, (times, rows) in told["noted"].items()},
        sizes={piece: Size(*size) for piece, size in told["sizes"].items()},
        candidates=Candidates(*told["candidates"]),
        labels=Labels(*told["labels"]) if told["labels"] else None,
        special=told["special"],
        unread=tuple(told["unread"]),
        added=tuple(told["added"]),
        uncounted=told["uncounted"],
    )


def _of_file(path: str) -> str:
    """SHA-256 of a file; what names none stands for itself."""
    if not os.path.isfile(os.path.expanduser(path)):
        return path
    return hashlib.sha256(pathlib.Path(path).expanduser().read_bytes()).hexdigest()


def _of_tokenizer(tokenizer: Any) -> str:
    """SHA-256 of all that a tokenizer does to a text, and of what it brings beside: special tokens, a chat template."""
    beside = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    held = [tokenise.digest(tokenizer), beside, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()

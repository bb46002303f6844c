"""What a run's numbers depend on beside its configuration: digests of what the configuration names by its place.

Knows a configuration, model folders and examples; knows no step.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from slpojax import bench as benches
from slpojax import cached, checkpoint, data, hf, objectives, selectors
from slpojax.bench import Bench
from slpojax.columns import Part
from slpojax.settings import Config
from slpojax.step import Method


def digests(config: Config, bench: Bench, method: Method, parts: Sequence[Part]) -> dict[str, str]:
    """Return what a resumed run must find unchanged, by name: a checkpoint holds it.

    Args:
        config: names the models.
        bench: model and tokenizer.
        method: objective and selector, whose code counts.
        parts: of the data.
    """
    start = benches.first_digest(bench) if config.model.weights == "load" else _of_text(bench.hf_config)
    held = {
        **{f"examples ({part.name})": part.examples.digest() for part in parts},
        "tokenizer": data.tokenizer_digest(bench.tokenizer),
        checkpoint.MODEL: start,
        "code of the objective": _of_code(objectives.functions(config.objective.name)),
    }
    if config.start:
        held["state that training starts from"] = checkpoint.last_digest(config.start)
    if method.selector:
        held["code of the selector"] = _of_code([selectors.find(method.selector.name)])
    paths = {"reference": "path", "previous model": "previous"} if config.reference.mode != "none" else {}
    for name, key in paths.items():
        if config.reference[key]:
            folder = hf.resolve(config.reference[key], key=f"reference.{key}")
            held[name] = benches.weights_digest(folder, f"reference.{key}")
    return held


def _of_text(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _of_code(functions: Sequence[Callable]) -> str:
    """Return the digest of the modules of functions; comments and docstrings do not count."""
    return _of_text([cached.module_digest(sys.modules[function.__module__]) for function in functions])

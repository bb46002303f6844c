"""The runs of a grid, read from their folders and sorted by method, strength and seed.

Knows metrics.jsonl of runs in a world; knows no configuration and no program.
"""

import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from slpojax import metrics
from slpojax.tradeoff import Path

KL, REWARD = "world/kl", "world/gold_lift"


class Run(NamedTuple):
    """A finished run.

    Attributes:
        method: its name.
        strength: the value that traces the curve, as text.
        seed: of the run.
        steps: of its evaluations.
        path: KL and gold reward gained at each.
        first: the metrics of the first evaluation.
        last: those of the last.
        digest: of its configuration.
    """

    method: str
    strength: str
    seed: int
    steps: tuple[int, ...]
    path: Path
    first: Mapping[str, float]
    last: Mapping[str, float]
    digest: str


class Method(NamedTuple):
    """The runs of a method.

    Attributes:
        name: in the configuration.
        label: what it is called in pictures and tables.
        key: of the strength, or several, comma-separated.
        runs: strength -> seed -> run.
    """

    name: str
    label: str
    key: str
    runs: Mapping[str, Mapping[int, Run]]

    @property
    def short(self) -> str:
        """Return the key of the strength without its groups."""
        return ", ".join(key.strip().rpartition(".")[2] for key in self.key.split(","))

    @property
    def paths(self) -> dict[str, dict[int, Path]]:
        """Return strength -> seed -> path."""
        return {strength: {seed: run.path for seed, run in runs.items()} for strength, runs in self.runs.items()}


class Known(NamedTuple):
    """What a page of another frontier says.

    Attributes:
        file: its numbers, frontier.json.
        commit: of the program that made its runs.
        seconds: that they took in all.
        runs: of all methods.
        bounds: seed -> (KL, the most that any policy can gain there).
    """

    file: pathlib.Path
    commit: str
    seconds: float
    runs: Sequence[Run]
    bounds: Mapping[int, tuple[np.ndarray, np.ndarray]]


def known(file: str | pathlib.Path) -> Known:
    """Read the numbers that `page.numbers` gave for a page.

    Raises:
        ValueError: the file holds something else.
    """
    file = pathlib.Path(file)
    try:
        content = json.loads(file.read_text())
        bounds = {int(seed): (_array(b["kl"]), _array(b["gain"])) for seed, b in content["bounds"].items()}
        runs = [_parsed(name, run) for name, method in content["methods"].items() for run in method["runs"]]
        return Known(file, str(content["commit"]), float(content["seconds"]), runs, bounds)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"config.frontier.known={file}: no numbers of a frontier ({type(error).__name__}); give a frontier.json of "
            "this version"
        ) from None


def _parsed(name: str, run: Mapping[str, Any]) -> Run:
    path = Path(_array([point["kl"] for point in run["points"]]), _array([point["gain"] for point in run["points"]]))
    steps = tuple(point["step"] for point in run["points"])
    first, last = ({key: _or_nan(value) for key, value in run[end].items()} for end in ("first", "last"))
    return Run(name, run["strength"], run["seed"], steps, path, first, last, run["config"])


def _array(values: Sequence[float | None]) -> np.ndarray:
    return np.array([_or_nan(value) for value in values], np.float64)


def _or_nan(value: Any) -> Any:
    return math.nan if value is None else value


def read(folder: pathlib.Path, *, method: str, strength: str, seed: int, digest: str) -> Run:
    """Read a run.

    Args:
        folder: its output.
        method: name of what it trained.
        strength: value of what traces the curve.
        seed: of the run.
        digest: of its configuration.

    Raises:
        ValueError: the run was not judged in a world.
    """
    rows = [row for row in metrics.read_jsonl(folder / "metrics.jsonl", "eval") if KL in row and REWARD in row]
    if len(rows) < 2:
        raise ValueError(
            f"{folder}: {len(rows)} evaluations with {KL} and {REWARD}, expected two or more; a frontier compares runs "
            "in a world (config.world)"
        )
    rows = sorted(rows, key=lambda row: row["step"])
    kl, reward = (np.array([row[name] for row in rows], np.float64) for name in (KL, REWARD))
    steps = tuple(row["step"] for row in rows)
    return Run(method, strength, seed, steps, Path(kl, reward), rows[0], rows[-1], digest)


def last(folder: pathlib.Path) -> str:
    """Say in a few words where a run ended."""
    rows = [row for row in metrics.read_jsonl(folder / "metrics.jsonl", "eval") if KL in row and REWARD in row]
    return f"gold reward {rows[-1][REWARD]:+.2f} std at a KL of {rows[-1][KL]:.2f}" if rows else "not judged"


def collect(runs: Iterable[Run], methods: Mapping[str, tuple[str, str]]) -> list[Method]:
    """Return the methods of which there are runs, in order.

    Args:
        runs: of all methods.
        methods: name -> (label, key of the strength).
    """
    made = []
    runs = list(runs)
    for name, (label, key) in methods.items():
        own = [run for run in runs if run.method == name]
        strengths = dict.fromkeys(run.strength for run in own)
        if own:
            of_strength = {s: {run.seed: run for run in own if run.strength == s} for s in strengths}
            made.append(Method(name, label, key, of_strength))
    return made


def mean_path(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation over seeds of (KL, reward), [2, N] each, at the evaluations that all have.

    Args:
        runs: of one method and strength. For one seed the deviations are NaN.
    """
    common = sorted(set.intersection(*(set(run.steps) for run in runs)))
    values = np.array(
        [[part[[run.steps.index(step) for step in common]] for part in run.path] for run in runs], np.float64
    )
    spread = values.std(axis=0, ddof=1) if len(runs) > 1 else np.full(values.shape[1:], np.nan)
    return values.mean(axis=0), spread

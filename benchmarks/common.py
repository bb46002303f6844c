"""What the benchmarks share that needs no JAX: the line that says what was measured where, model shapes, and clocks.

Importing this puts the checkout that the script lies in first on the path: it is measured, whatever is installed.
"""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from slpojax.public import SHAPES, neox  # noqa: E402

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
T = TypeVar("T")


MODELS = {"tiny": neox(32, 2, 2), "small": neox(256, 4, 4)}
MODELS |= {name: SHAPES[name] for name in ("pythia-160m", "pythia-1b", "pythia-2.8b")}


def header(args: argparse.Namespace, *packages: str, device: str = "") -> str:
    """Return one line: commit, date, machine, versions and settings.

    Args:
        args: of the script.
        *packages: whose versions matter beside `PACKAGES`.
        device: what runs it, if that is not the processor.
    """

    def git(*command: str) -> str:
        done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    def version(package: str) -> str:
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            return f"no {package}"

    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    cores = f"{os.cpu_count()} cores of {_processor()}, load {os.getloadavg()[0]:.1f}"
    versions = ", ".join(map(version, (*PACKAGES, *packages)))
    settings = " ".join(f"{name}={value}" for name, value in vars(args).items() if value not in (None, ""))
    return (
        f"commit {commit}{changed}; {time.strftime('%Y-%m-%d')}; {device + ', ' if device else ''}{cores}; "
        f"python {platform.python_version()}, {versions}; {pathlib.Path(sys.argv[0]).name} {settings}"
    )


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


class Times(NamedTuple):
    """Seconds of every timed round: on the clock, and of all threads of the processor."""

    wall: list[float]
    cpu: list[float]


def in_turn(runs: Mapping[T, Callable[[], Any]], rounds: int) -> dict[T, Times]:
    """Run everything once a round, one after the other, after a round that is not timed.

    Args:
        runs: what is timed; each returns when it is done (`jax.block_until_ready`).
        rounds: timed ones; 0 runs nothing.
    """
    times = {name: Times([], []) for name in runs}
    for number in range(rounds + 1 if rounds else 0):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if number:
                times[name].wall.append(time.perf_counter() - wall)
                times[name].cpu.append(time.process_time() - cpu)
    return times


def spread(values: Iterable[float], digits: int = 2, unit: str = "") -> str:
    """Return the median, and the smallest and the largest beside it; "-" where there is none.

    Example:
        >>> spread([1.0, 3.0, 2.0], 1, "x")
        '2.0x (1.0-3.0)'
    """
    values = list(values)
    if not values:
        return "-"
    return f"{statistics.median(values):.{digits}f}{unit} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def verdict(met: bool) -> str:
    return "met" if met else "NOT MET"


def over(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return the ratio to the base of the same round, round by round: what slows both down cancels."""
    return [value / other for value, other in zip(values, base, strict=True)]

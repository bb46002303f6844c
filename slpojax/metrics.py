"""Where metrics go: metrics.jsonl always, TensorBoard and W&B if configured, and a line of progress on the console.

The metrics of step n are fetched when step n + 1 is on its way, so the device never waits for the log. A thread notes
when each step has ended: the time from there until the next step is dispatched is time in which the device waits.
The first host alone writes. Knows numbers with names; knows no model, no objective and no configuration.
"""

import concurrent.futures
import dataclasses
import importlib
import json
import math
import os
import pathlib
import resource
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import rich
from rich.console import Console
from rich.progress import Progress, TaskID

from slpojax import log
from slpojax.base import EACH

# What the console shows of a step where it is there, under a shorter name.
SHOWN = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy", "logps/chosen": "logp chosen"}
SHOWN |= {"logps/rejected": "rejected", "world/gold_reward": "gold reward", "world/kl": "KL"}

_TAG = 64  # characters of a tag that W&B takes

WORTH_SHOWING = 0.05  # the least share of the time that the device waits of which the console speaks

_PEAKS = {"device_peak_bytes": "peak memory of a device", "process_peak_bytes": "peak memory of the process"}

Row = dict[str, Any]


class Sink(NamedTuple):
    """Where metrics go: `write` takes a step, a split and numbers by name; `close` lets go of it."""

    write: Callable[[int, str, Mapping[str, float]], None]
    close: Callable[[], Any]


@dataclasses.dataclass
class Meter:
    """Throughput. The first step behind a start or a pause is not timed: it compiles, or waits for an evaluation."""

    clock: float | None = None
    seconds: float = 0.0
    waited: float | None = None
    timed: dict[str, int | float] = dataclasses.field(default_factory=dict)
    seen: dict[str, int | float] = dataclasses.field(default_factory=dict)

    def add(self, now: float, counts: Mapping[str, int | float], dispatched: float | None = None) -> None:
        """Count a step.

        Args:
            now: when it ended.
            counts: what it holds by name, of which "slots" is room and no throughput.
            dispatched: when it was dispatched, if known: from the end of the step before until then the device waited.
        """
        _count(self.seen, counts)
        if self.clock is not None:
            self.seconds += now - self.clock
            if dispatched is not None:
                self.waited = (self.waited or 0.0) + max(0.0, min(dispatched, now) - self.clock)
            _count(self.timed, {"steps": 1, **counts})
        self.clock = now

    def take(self) -> dict[str, float]:
        """Return the rates since the last call, and start over."""
        rates = {}
        if self.seconds > 0:
            steps = self.timed.pop("steps")
            rates = {f"{what}_per_second": self.timed[what] / self.seconds for what in self.timed if what != "slots"}
            rates["step_seconds"] = self.seconds / steps
            if self.waited is not None:
                rates["device_waited_share"] = self.waited / self.seconds
        if self.seen.get("slots"):
            rates["padding_share"] = 1.0 - self.seen["tokens"] / self.seen["slots"]
        self.seconds, self.waited, self.timed, self.seen = 0.0, None, {}, {}
        return rates


class Pending(NamedTuple):
    """A step under way: its metrics, what its batch holds, when it was dispatched and, once known, when it ended."""

    step: int
    metrics: Mapping[str, Any]
    counts: dict[str, int | float]
    dispatched: float | None
    ended: concurrent.futures.Future[float]
    sources: Mapping[str, np.ndarray]


@dataclasses.dataclass
class Log:
    """An open log, from `open_log`; `write` training steps, `record` anything else, `close` at the end.

    Attributes:
        total: the steps of the run.
        every: steps between lines; steps between them are checked and counted all the same.
        peak: floating-point operations a second that all devices could do, or None where nobody knows.
        sinks: where lines go; none but on the first host.
        console: where progress is shown; None for standard output.
        bar: the progress bar of a terminal, and None elsewhere, where a line appears every `log.PATIENCE` seconds.
        broken: metrics of the steps whose loss or gradient is not finite, by step; whoever looks empties it.
    """

    total: int
    every: int
    sinks: list[Sink]
    console: Console | None
    peak: float | None = None
    bar: tuple[Progress, TaskID] | None = None
    meter: Meter = dataclasses.field(default_factory=Meter)
    watcher: concurrent.futures.Executor = dataclasses.field(
        default_factory=lambda: concurrent.futures.ThreadPoolExecutor(1, "step ends")
    )
    broken: dict[int, Row] = dataclasses.field(default_factory=dict)
    pending: Pending | None = None
    begun: tuple[int, float] | None = None
    printed: float = -math.inf

    def write(
        self,
        step: int,
        metrics: Mapping[str, Any],
        *,
        dispatched: float | None = None,
        sources: Mapping[str, np.ndarray] = MappingProxyType({}),
        **counts: int | float,
    ) -> None:
        """Hand over the metrics of a training step that has been dispatched; those of the step before are written.

        Args:
            step: the number of finished steps, so the first one is 1.
            metrics: scalars, and `each/NAME` of every example, [B]; still on the device.
            dispatched: `time.perf_counter()` just before the step was dispatched; gives device_waited_share, the share
                of the time in which no step was under way: the device waited for a batch.
            sources: of a mixture, name of a source -> its examples' places in the batch, for means of their own.
            **counts: what the batch holds, each written as a rate: examples, tokens, flops (which gives mfu, the share
                of `peak`), ...; "slots" is the room in its rows and gives padding_share.
        """
        before = self.pending
        self.pending = Pending(step, metrics, counts, dispatched, self.watcher.submit(_end, metrics), sources)
        if before is not None:
            self._finish(before)

    def record(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Write metrics of another kind (an evaluation) at once, behind those of the steps so far."""
        self.flush()
        values = {name: float(value) for name, value in metrics.items()}
        for sink in self.sinks:
            sink.write(step, split, values)
        log.say(f"{split} at step {step}: {_shown(values)}", console=self.console)

    def flush(self) -> None:
        """Write what is pending, and stop the clock: what follows (an evaluation, a checkpoint) is no training time."""
        pending, self.pending = self.pending, None
        if pending is not None:
            self._finish(pending)
        self.meter.clock = None

    def close(self) -> None:
        """Write what is pending and let go of everything."""
        try:
            self.flush()
        finally:
            self.watcher.shutdown()
            for sink in self.sinks:
                sink.close()
            if self.bar:
                self.bar[0].stop()

    def _finish(self, pending: Pending) -> None:
        values = _values(jax.device_get(dict(pending.metrics)), pending.sources)
        step, now = pending.step, pending.ended.result()
        self.begun = self.begun or (step, now)
        self.meter.add(now, pending.counts, pending.dispatched)
        broken = any(not math.isfinite(values.get(name, 0.0)) for name in ("loss", "grad_norm"))
        if step % self.every == 0 or step >= self.total or broken:
            values |= self.meter.take() | peak_memory()
            if self.peak and "flops_per_second" in values:
                values["mfu"] = values["flops_per_second"] / self.peak
            for sink in self.sinks:
                sink.write(step, "train", values)
            self._show(step, now, values)
        if broken:
            self.broken[step] = values

    def _show(self, step: int, now: float, values: Mapping[str, float]) -> None:
        """Bring the console up to date."""
        text = _shown(values)
        if "tokens_per_second" in values:
            text += f"  {log.short(values['examples_per_second'])} examples/s"
            text += f"  {log.short(values['tokens_per_second'])} tokens/s"
        if values.get("device_waited_share", 0.0) >= WORTH_SHOWING:
            text += f"  device waits {values['device_waited_share']:.0%}"
        first, since = self.begun or (step, now)
        left = f"{log.clock((self.total - step) * (now - since) / (step - first))} left" if step > first else ""
        if step >= self.total:
            text += "".join(f"  {_PEAKS[name]} {values[name] / 2**30:.3g} GiB" for name in _PEAKS if name in values)
        if self.bar is not None:
            progress, task = self.bar
            progress.update(task, completed=step, left=left, text=text)
        elif now - self.printed >= log.PATIENCE or step >= self.total:
            self.printed = now
            log.say(f"step {step}/{self.total}  {text}" + f"  {left}" * bool(left), console=self.console)


def _values(fetched: Mapping[str, Any], sources: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the scalars, and of every source that the batch has examples of the means `source/SOURCE/NAME`."""
    values = {name: float(value) for name, value in fetched.items() if not name.startswith(EACH)}
    for source, places in sources.items():
        for name, each in fetched.items():
            if name.startswith(EACH) and len(places):
                mean = np.mean(each[places], dtype=np.float64)
                values[f"source/{source}/{name.removeprefix(EACH)}"] = float(mean)
    return values


def open_log(
    folder: str | pathlib.Path,
    *,
    total: int,
    step: int | None = None,
    every: int = 1,
    tensorboard: bool = False,
    wandb: str = "",
    config: Mapping[str, Any] | None = None,
    peak: float | None = None,
    console: Console | None = None,
) -> Log:
    """Open the log of a run.

    Args:
        folder: of metrics.jsonl and what TensorBoard and W&B write.
        total: the steps of the run.
        step: the finished steps of the checkpoint it goes on from: later lines are dropped, for they come again. None
            for a new run: an earlier metrics.jsonl is then set aside as metrics.1.jsonl, metrics.2.jsonl, ...
        every: steps between lines.
        tensorboard: write <folder>/tensorboard too.
        wandb: the project to report to, "" for none.
        config: shown with the run in W&B.
        peak: floating-point operations a second that all devices could do, if known.
        console: where progress is shown; standard output by default.

    Raises:
        ImportError: the package of a sink is not installed.
    """
    opened = Log(total, max(1, every), [], console, peak)
    if jax.process_index() != 0:
        return opened
    require_sinks(tensorboard, wandb)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    opened.sinks.append(_jsonl(folder / "metrics.jsonl", step))
    if tensorboard:
        opened.sinks.append(_tensorboard(folder / "tensorboard", step))
    if wandb:
        opened.sinks.append(_wandb(folder, wandb, config or {}))
    console = console or rich.get_console()
    if console.is_terminal:
        progress = log.bar(console)
        opened.bar = progress, progress.add_task("", total=total, completed=step or 0, left="", text="compiling")
        progress.start()
    return opened


def require_sinks(tensorboard: bool, wandb: str) -> None:
    """See that the packages of the sinks that a configuration names are installed, before anything takes time.

    Args:
        tensorboard: whether TensorBoard is written.
        wandb: the project in W&B, "" for none.

    Raises:
        ImportError: one is not; says which extra has it.
    """
    writes = jax.process_index() == 0  # the other hosts write nothing
    if tensorboard and writes:
        _import("tensorboardX", "tensorboard")
    if wandb and writes:
        _import("wandb", "wandb")


def profile_steps(text: str) -> range | None:
    """Return the steps whose trace `config.profile` asks for, or None.

    Example:
        >>> profile_steps("10:12"), profile_steps("")
        (range(10, 13), None)

    Raises:
        ValueError: the text is neither empty nor "first:last", counted from 1.
    """
    if not text:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        raise ValueError(f"config.profile={text!r}: expected first:last, as in 10:12, or nothing")
    return range(int(first), int(last) + 1)


def peak_memory() -> dict[str, float]:
    """Return the most bytes that were ever in use: of this process's fullest device, or of the process.

    A device that is the host itself (a CPU) does not count its bytes; there the process's resident memory is known.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    known = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    if known:
        return {"device_peak_bytes": float(max(known))}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"process_peak_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}


def read_jsonl(path: str | pathlib.Path, split: str | None = None) -> list[Row]:
    """Return the lines of a metrics.jsonl, of one split or of all; a torn last line is left out.

    JSON has no number that is not finite; there null stands for all of them, and is read as NaN.
    """
    rows = [row for row in _parsed(pathlib.Path(path)) if split in (None, row["split"])]
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]


def write_jsonl(path: str | pathlib.Path, rows: Iterable[Row]) -> None:
    """Write the lines of a metrics.jsonl, whole or not at all."""
    path = pathlib.Path(path)
    new = path.with_suffix(".tmp")
    new.write_text("".join(_line(row) for row in rows))
    os.replace(new, path)


def _line(row: Row) -> str:
    """Return a line: JSON has no number that is not finite."""
    values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(values) + "\n"


def _parsed(path: pathlib.Path) -> Iterator[Row]:
    """Yield the lines of a metrics.jsonl that are whole."""
    for line in path.read_text().split("\n"):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def _jsonl(path: pathlib.Path, step: int | None) -> Sink:
    """Open metrics.jsonl, cut behind `step`; None sets an earlier one aside."""
    if step is not None and path.exists():
        shorter = path.with_suffix(".tmp")
        shorter.write_text("".join(json.dumps(row) + "\n" for row in _parsed(path) if row["step"] <= step))
        os.replace(shorter, path)  # a kill here leaves the old file or the new one
    elif path.exists():
        used = len(list(path.parent.glob("metrics.*.jsonl")))
        path.rename(path.with_name(f"metrics.{used + 1}.jsonl"))
    file = path.open("a", buffering=1)  # a line at a time reaches the system, and outlives the process

    def write(step: int, split: str, values: Mapping[str, float]) -> None:
        file.write(_line({"step": step, "split": split, **values}))

    return Sink(write, file.close)


def _tensorboard(folder: pathlib.Path, step: int | None) -> Sink:
    """Open TensorBoard; what it shows behind `step` is purged."""
    writer = _import("tensorboardX", "tensorboard").SummaryWriter(str(folder), purge_step=(step or 0) + 1)

    def write(step: int, split: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(f"{split}/{name}", value, step)

    return Sink(write, writer.close)


def _wandb(folder: pathlib.Path, project: str, config: Mapping[str, Any]) -> Sink:
    """Open W&B; the id beside the metrics makes a resumed run the same run there."""
    name = folder / "wandb_id"
    if not name.exists():
        name.write_text(uuid.uuid4().hex)
    run = _import("wandb", "wandb").init(
        project=project,
        id=name.read_text(),
        resume="allow",
        dir=str(folder),
        config=dict(config),
        **run_names(folder, config),
    )

    def write(step: int, split: str, values: Mapping[str, float]) -> None:
        run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    return Sink(write, run.finish)


def run_names(folder: str | pathlib.Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return name, group and tags by which W&B lists a run: its folder, the folder's folder, and what it trains.

    Example:
        >>> run_names("output/sweep/seed1", {"objective": {"name": "dpo.ipo"}, "model": {"path": "output/sft_hh/hf"}})
        {'name': 'seed1', 'group': 'sweep', 'tags': ['dpo.ipo', 'sft_hh']}
        >>> run_names("output/mine", {})
        {'name': 'mine', 'group': None, 'tags': []}
    """
    folder = pathlib.Path(folder)
    parent = folder.parent.name
    tags = [config.get("objective", {}).get("name", ""), config.get("world", "")]
    tags += [config.get(part, {}).get("path", "").removesuffix("/hf").rpartition("/")[2] for part in ("model", "data")]
    tags = [tag[:_TAG] for tag in dict.fromkeys(tags) if tag]
    return {"name": folder.name, "group": parent if parent not in ("", "output") else None, "tags": tags}


def _import(package: str, key: str) -> Any:
    """Import a package that only some runs need."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"--config.{key} needs {package}: `pip install 'slpojax[logging]'`, or leave the key out"
        ) from error


def _end(metrics: Mapping[str, Any]) -> float:
    """Wait until a step has ended and return when that was."""
    try:
        jax.block_until_ready(dict(metrics))
    except Exception:  # noqa: S110, BLE001  a step that fails raises where its metrics are fetched
        pass
    return time.perf_counter()


def _count(into: dict[str, int | float], counts: Mapping[str, int | float]) -> None:
    for name, count in counts.items():
        into[name] = into.get(name, 0) + count


def _shown(values: Mapping[str, float]) -> str:
    """Return the metrics that the console shows, in one line; all of them are in metrics.jsonl."""
    return "  ".join(f"{short} {values[name]:.4g}" for name, short in SHOWN.items() if name in values)

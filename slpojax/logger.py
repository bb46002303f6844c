"""Where metrics go: metrics.jsonl always, TensorBoard and W&B if asked for, and a line of progress on the console.

The metrics of step n are fetched when step n + 1 is on its way, so the device never waits for the log. A thread notes
when each step has ended: what passes from there until the next one is asked for is time in which the device waits.
Everything is written by process 0 only. Knows numbers with names; knows no model, no objective and no configuration.
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
from typing import Any, NamedTuple, TypeVar

import jax
import rich
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

# What the console shows of a step where it is there, under a shorter name.
SHOWN = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy", "logps/chosen": "logp chosen"}
SHOWN |= {"logps/rejected": "rejected", "world/gold_reward": "gold reward", "world/kl": "KL"}

PATIENCE = 10.0  # seconds between lines where there is no terminal
WORTH_SHOWING = 0.05  # the least share of the time that the device waits of which the console speaks

_PEAKS = {"device_peak_bytes": "peak memory of a device", "process_peak_bytes": "peak memory of the process"}

T = TypeVar("T")
Row = dict[str, Any]
Sink = Callable[[int, str, Mapping[str, float]], None]  # step, split, {name: value}


@dataclasses.dataclass
class Meter:
    """Throughput. The first step behind a start or a pause is not timed: it compiles, or waits for an evaluation."""

    clock: float | None = None
    seconds: float = 0.0
    waited: float | None = None
    timed: dict[str, int | float] = dataclasses.field(default_factory=dict)
    seen: dict[str, int | float] = dataclasses.field(default_factory=dict)

    def add(self, now: float, counts: Mapping[str, int | float], asked: float | None = None) -> None:
        """Count a step.

        Args:
            now: when it ended.
            counts: what it holds by name, of which "slots" is room and no throughput.
            asked: when it was dispatched, if known: the device has waited from the end of the step before until then.
        """
        _count(self.seen, counts)
        if self.clock is not None:
            self.seconds += now - self.clock
            if asked is not None:
                self.waited = (self.waited or 0.0) + max(0.0, min(asked, now) - self.clock)
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


class Held(NamedTuple):
    """A step that is under way: what it gives and holds, when it was asked for, and, once known, when it ended."""

    step: int
    metrics: Mapping[str, Any]
    counts: dict[str, int | float]
    asked: float | None
    ended: concurrent.futures.Future[float]


@dataclasses.dataclass
class Logger:
    """An open log, from `open_log`; `write` training steps, `record` anything else, `close` at the end.

    Attributes:
        total: the steps of the run.
        every: steps between lines; steps between them are checked and counted all the same.
        abort: raise where the loss or the gradient is not finite.
        peak: floating-point operations a second that all devices could do, or None where nobody knows.
        sinks: where lines go; empty but on process 0.
        closers: what lets go of them.
        console: prints; silent but on process 0.
        bar: the progress bar of a terminal, and None elsewhere, where a line appears every `PATIENCE` seconds.
    """

    total: int
    every: int
    abort: bool
    sinks: list[Sink]
    closers: list[Callable[[], None]]
    console: Console
    peak: float | None = None
    bar: tuple[Progress, TaskID] | None = None
    meter: Meter = dataclasses.field(default_factory=Meter)
    watcher: concurrent.futures.Executor = dataclasses.field(
        default_factory=lambda: concurrent.futures.ThreadPoolExecutor(1, "step ends")
    )
    held: Held | None = None
    begun: tuple[int, float] | None = None
    printed: float = -math.inf

    def write(
        self, step: int, metrics: Mapping[str, Any], *, asked: float | None = None, **counts: int | float
    ) -> None:
        """Hand over the metrics of a training step that has been dispatched; those of the step before are written.

        Args:
            step: the number of finished steps, so the first one is 1.
            metrics: scalars, still on the device.
            asked: `time.perf_counter()` just before the step was dispatched; gives device_waited_share, the share of
                the time in which no step was under way: the device waited for a batch.
            **counts: what the batch holds, each written as a rate: examples, tokens, flops (which gives mfu, the share
                of `peak`), ...; "slots" is the room in its rows and gives padding_share.

        Raises:
            FloatingPointError: the loss or gradient norm of the step before was not finite.
        """
        held, self.held = self.held, Held(step, metrics, counts, asked, self.watcher.submit(_end, metrics))
        if held is not None:
            self._finish(held)

    def record(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Write metrics of another kind (an evaluation) at once, behind those of the steps so far."""
        self.flush()
        values = {name: float(value) for name, value in metrics.items()}
        for sink in self.sinks:
            sink(step, split, values)
        self.say(f"{split} at step {step}: {_shown(values)}")

    def say(self, text: str) -> None:
        """Print a line without tearing the progress bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def flush(self) -> None:
        """Write what is held, and stop the clock: what follows (an evaluation, a checkpoint) is no training time."""
        held, self.held = self.held, None
        if held is not None:
            self._finish(held)
        self.meter.clock = None

    def close(self) -> None:
        """Write what is held and let go of everything."""
        try:
            self.flush()
        finally:
            self.watcher.shutdown()
            for close in self.closers:
                close()

    def _finish(self, held: Held) -> None:
        values = {name: float(value) for name, value in jax.device_get(dict(held.metrics)).items()}
        step, now = held.step, held.ended.result()
        self.begun = self.begun or (step, now)
        self.meter.add(now, held.counts, held.asked)
        broken = any(not math.isfinite(values.get(name, 0.0)) for name in ("loss", "grad_norm"))
        if step % self.every == 0 or step >= self.total or broken:
            values |= self.meter.take() | peak_memory()
            if self.peak and "flops_per_second" in values:
                values["mfu"] = values["flops_per_second"] / self.peak
            for sink in self.sinks:
                sink(step, "train", values)
            self._show(step, now, values)
        if broken and self.abort:
            self.held = None
            names = ", ".join(f"{name} = {value}" for name, value in values.items() if not math.isfinite(value))
            raise FloatingPointError(
                f"step {step} is not finite: {names}. Lower the learning rate, or look at the batch of this step; "
                "--config.abort_on_nonfinite=False goes on regardless"
            )

    def _show(self, step: int, now: float, values: Mapping[str, float]) -> None:
        """Bring the console up to date."""
        text = _shown(values)
        if "tokens_per_second" in values:
            text += (
                f"  {_short(values['examples_per_second'])} examples/s  {_short(values['tokens_per_second'])} tokens/s"
            )
        if values.get("device_waited_share", 0.0) >= WORTH_SHOWING:
            text += f"  device waits {values['device_waited_share']:.0%}"
        first, since = self.begun or (step, now)
        if step > first:
            text += f"  {_clock((self.total - step) * (now - since) / (step - first))} left"
        if step >= self.total:
            text += "".join(f"  {_PEAKS[name]} {values[name] / 2**30:.3g} GiB" for name in _PEAKS if name in values)
        if self.bar is not None:
            progress, task = self.bar
            progress.update(task, completed=step, text=text)
        elif now - self.printed >= PATIENCE or step >= self.total:
            self.printed = now
            self.say(f"step {step}/{self.total}  {text}")


def open_log(
    folder: str | pathlib.Path,
    *,
    total: int,
    step: int | None = None,
    every: int = 1,
    tensorboard: bool = False,
    wandb: str = "",
    config: Mapping[str, Any] | None = None,
    abort: bool = True,
    peak: float | None = None,
    console: Console | None = None,
) -> Logger:
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
        abort: raise where the loss or the gradient is not finite.
        peak: see `Logger`.
        console: a rich console; standard output by default.

    Raises:
        ImportError: the package of a sink is not installed.
    """
    folder = pathlib.Path(folder)
    writes = jax.process_index() == 0
    shown = console if console and writes else Console(quiet=not writes)
    log = Logger(total, max(1, every), abort, [], [], shown, peak)
    if not writes:
        return log
    board = _require("tensorboardX", "tensorboard") if tensorboard else None
    project = _require("wandb", "wandb") if wandb else None
    folder.mkdir(parents=True, exist_ok=True)
    _add_jsonl(log, folder / "metrics.jsonl", step)
    if board:
        _add_tensorboard(log, board, folder / "tensorboard", step)
    if project:
        _add_wandb(log, project, folder, wandb, config or {})
    if log.console.is_terminal:
        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
        progress = Progress(*columns, console=log.console)
        log.bar = progress, progress.add_task("", total=total, completed=step or 0, text="compiling")
        progress.start()
        log.closers.append(progress.stop)
    return log


def track(items: Iterable[T], total: int, text: str, *, console: Console | None = None) -> Iterator[T]:
    """Yield `items` while the console shows how many of `total` are done: a bar on a terminal, few lines elsewhere."""
    console = console or Console(quiet=jax.process_index() != 0)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            yield from progress.track(items, total=total, description=text)
        return
    begun = printed = time.perf_counter()
    for n, item in enumerate(items, 1):
        yield item
        now = time.perf_counter()
        if now - printed >= PATIENCE or n == total:
            printed = now
            left = f"{_clock((total - n) * (now - begun) / n)} left" if n < total else f"in {_clock(now - begun)}"
            console.print(f"{text} {n}/{total}  {left}", highlight=False, markup=False, soft_wrap=True)


def tell(text: str) -> None:
    """Print a line, or a table, once for all hosts."""
    if jax.process_index() == 0:
        rich.get_console().print(text, highlight=False, markup=False, soft_wrap=True)


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
    """Return the lines of a metrics.jsonl, of one split or of all; a torn last line is left out."""
    rows = []
    for line in pathlib.Path(path).read_text().split("\n"):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [row for row in rows if split in (None, row["split"])]


def _add_jsonl(log: Logger, path: pathlib.Path, step: int | None) -> None:
    """Add metrics.jsonl, cut behind `step`."""
    if step is not None and path.exists():
        keep = [json.dumps(row) + "\n" for row in read_jsonl(path) if row["step"] <= step]
        shorter = path.with_suffix(".tmp")
        shorter.write_text("".join(keep))
        os.replace(shorter, path)  # a kill here leaves the old file or the new one
    elif path.exists():
        used = len(list(path.parent.glob("metrics.*.jsonl")))
        path.rename(path.with_name(f"metrics.{used + 1}.jsonl"))
    file = path.open("a", buffering=1)  # a line at a time reaches the system, and outlives the process

    def sink(step: int, split: str, values: Mapping[str, float]) -> None:
        file.write(json.dumps({"step": step, "split": split, **values}) + "\n")

    log.sinks.append(sink)
    log.closers.append(file.close)


def _add_tensorboard(log: Logger, module: Any, folder: pathlib.Path, step: int | None) -> None:
    """Add TensorBoard; what it shows behind `step` is purged."""
    writer = module.SummaryWriter(str(folder), purge_step=(step or 0) + 1)

    def sink(step: int, split: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(f"{split}/{name}", value, step)

    log.sinks.append(sink)
    log.closers.append(writer.close)


def _add_wandb(log: Logger, module: Any, folder: pathlib.Path, project: str, config: Mapping[str, Any]) -> None:
    """Add W&B; the id beside the metrics makes a resumed run the same run there."""
    name = folder / "wandb_id"
    if not name.exists():
        name.write_text(uuid.uuid4().hex)
    run = module.init(project=project, id=name.read_text(), resume="allow", dir=str(folder), config=dict(config))
    log.sinks.append(lambda step, split, values: run.log({f"{split}/{k}": v for k, v in values.items()}, step=step))
    log.closers.append(run.finish)


def _require(package: str, key: str) -> Any:
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
    except Exception:  # noqa: S110, BLE001  a step that fails is told where its metrics are fetched
        pass
    return time.perf_counter()


def _count(into: dict[str, int | float], counts: Mapping[str, int | float]) -> None:
    for name, count in counts.items():
        into[name] = into.get(name, 0) + count


def _shown(values: Mapping[str, float]) -> str:
    """Return the metrics that the console shows, in one line; all of them are in metrics.jsonl."""
    return "  ".join(f"{short} {values[name]:.4g}" for name, short in SHOWN.items() if name in values)


def _short(value: float) -> str:
    """Return three digits: 12.3, 4.57k, 1.2M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _clock(seconds: float) -> str:
    """Return h:mm:ss, or m:ss where there is no hour."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"

"""The log: what is written when, what a restart keeps, and what stops a run."""

import io
import json
import math
import sys
import threading
import types

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from slpojax import log as console_log
from slpojax import metrics

QUIET = Console(file=io.StringIO())


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_step_is_written_when_the_next_one_is_under_way(tmp_path):
    log = metrics.open_log(tmp_path, total=3, console=QUIET)
    log.write(1, {"loss": jnp.float32(0.1)})
    assert lines(tmp_path) == []
    log.write(2, {"loss": jnp.float32(0.2)})
    (line,) = lines(tmp_path)
    assert line.pop("process_peak_bytes") > 2**20
    assert line == {"step": 1, "split": "train", "loss": float(jnp.float32(0.1))}
    log.flush()
    log.record(2, "eval", {"loss": 0.25})
    log.close()
    assert [(row["step"], row["split"]) for row in lines(tmp_path)] == [(1, "train"), (2, "train"), (2, "eval")]


def test_each_source_of_a_mixture_has_means_of_its_own(tmp_path):
    """Of the examples that a batch has of it; a source without one has none."""
    log = metrics.open_log(tmp_path, total=1, console=QUIET)
    each = {"each/loss": jnp.float32([1.0, 2.0, 6.0, 4.0]), "each/rewards/margins": jnp.float32([0.0, 1.0, 2.0, 3.0])}
    places = {"hh": np.array([0, 2]), "shp": np.array([1]), "webgpt": np.zeros(0, int)}
    log.write(1, {"loss": jnp.float32(3.25)} | each, sources=places)
    log.close()
    (line,) = lines(tmp_path)
    line.pop("process_peak_bytes")
    of_sources = {"hh/loss": 3.5, "hh/rewards/margins": 1.0, "shp/loss": 2.0, "shp/rewards/margins": 1.0}
    expected = {f"source/{name}": value for name, value in of_sources.items()}
    assert line == {"step": 1, "split": "train", "loss": 3.25, **expected}


def test_every_nth_step_and_the_last_have_a_line(tmp_path):
    log = metrics.open_log(tmp_path, total=8, every=3, console=QUIET)
    for step in range(1, 9):
        log.write(step, {"loss": 1.0}, examples=4, tokens=75, slots=100)
    log.close()
    assert [row["step"] for row in lines(tmp_path)] == [3, 6, 8]
    assert all(row["padding_share"] == 0.25 for row in lines(tmp_path))


def test_throughput_leaves_out_the_first_step_and_pauses():
    meter, counts = metrics.Meter(), {"examples": 4, "tokens": 60, "slots": 80}
    meter.add(100.0, counts)  # compiled for 100 s
    assert meter.take() == {"padding_share": 0.25}
    meter.add(101.0, counts)
    meter.add(103.0, counts)
    expected = {"examples_per_second": 8 / 3, "tokens_per_second": 40.0, "step_seconds": 1.5, "padding_share": 0.25}
    assert meter.take() == pytest.approx(expected)
    meter.clock = None  # an evaluation
    meter.add(200.0, counts)
    meter.add(201.0, counts)
    assert meter.take()["step_seconds"] == 1.0


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_step_that_is_not_finite_is_written_and_reported(tmp_path, name):
    log = metrics.open_log(tmp_path, total=9, every=100, console=QUIET)
    log.write(7, {"loss": 1.0, "grad_norm": 1.0} | {name: jnp.nan, "other": jnp.inf})
    log.write(8, {"loss": 1.0})
    log.close()
    assert [*log.broken] == [7] and log.broken[7]["other"] == math.inf
    (row,) = metrics.read_jsonl(tmp_path / "metrics.jsonl")
    assert row["step"] == 7 and math.isnan(row[name]) and math.isnan(row["other"])
    assert lines(tmp_path)[0][name] is None  # JSON has no NaN


def test_a_restart_drops_what_comes_again_and_a_torn_line(tmp_path):
    rows = [
        {"step": 0, "split": "eval", "loss": 0.1},
        *({"step": s, "split": "train", "loss": 1 / 3} for s in range(1, 6)),
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "spl')
    metrics.open_log(tmp_path, total=9, step=3, console=QUIET).close()
    assert lines(tmp_path) == rows[:4]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_sets_an_earlier_log_aside(tmp_path):
    for loss in (1.0, 2.0, 3.0):
        log = metrics.open_log(tmp_path, total=9, console=QUIET)
        log.record(1, "eval", {"loss": loss})
        log.close()
    kept = {p.name: json.loads(p.read_text())["loss"] for p in tmp_path.iterdir()}
    assert kept == {"metrics.1.jsonl": 1.0, "metrics.2.jsonl": 2.0, "metrics.jsonl": 3.0}


def test_plain_lines_are_few_and_a_terminal_gets_a_bar(tmp_path):
    for terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
        log = metrics.open_log(tmp_path, total=50, console=console)
        for step in range(1, 51):
            log.write(step, {"loss": 0.5, "rewards/margins": 0.25}, examples=2, tokens=10, slots=10)
        console_log.say("saved [1, 2]", console=console)
        log.close()
        text = console.file.getvalue()
        assert "loss 0.5  margin 0.25" in text and "50/50" in text and "saved [1, 2]" in text
        assert "examples/s" in text and "left" in text
        if not terminal:  # the first step, the last, and what was said
            assert [line.split("  ")[0] for line in text.splitlines()] == ["step 1/50", "saved [1, 2]", "step 50/50"]


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    log = metrics.open_log(tmp_path / "none", total=9, tensorboard=True)
    log.write(1, {"loss": 1.0})
    log.close()
    assert not (tmp_path / "none").exists()


def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboardX")
    log = metrics.open_log(tmp_path, total=2, tensorboard=True, console=QUIET)
    log.write(1, {"loss": 0.5, "rewards/margins": 0.1})
    log.record(1, "eval", {"loss": 0.25})
    log.close()
    data = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard").iterdir())
    assert all(tag in data for tag in (b"train/loss", b"train/rewards/margins", b"eval/loss"))


def test_wandb_resumes_the_same_run(tmp_path, monkeypatch):
    class Fake:
        """As much of wandb as is used."""

        inits, logged = [], []

        def init(self, **kwargs):
            self.inits.append(kwargs)
            return self

        def log(self, values, step):
            self.logged.append((step, values))

        def finish(self):
            self.logged.append("finished")

    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (None, 1):
        log = metrics.open_log(tmp_path, total=2, step=step, wandb="project", config={"seed": 0}, console=QUIET)
        log.write(1 + (step or 0), {"loss": 0.5})
        log.close()
    assert fake.inits[0] == fake.inits[1] and fake.inits[0]["project"] == "project"
    assert {"name", "group", "tags"} <= fake.inits[0].keys()
    (first, one), after, (second, two), last = fake.logged
    assert (first, after, second, last) == (1, "finished", 2, "finished")
    assert one["train/loss"] == two["train/loss"] == 0.5


@pytest.mark.parametrize("key, package", [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_says_which_extra_has_it(tmp_path, monkeypatch, key, package):
    monkeypatch.setitem(sys.modules, package, None)
    sinks = {"tensorboard": False, "wandb": ""} | {key: True if key == "tensorboard" else "project"}
    says = rf"--config.{key} needs {package}: `pip install 'slpojax\[logging\]'`"
    with pytest.raises(ImportError, match=says):
        metrics.require_sinks(**sinks)
    with pytest.raises(ImportError, match=says):
        metrics.open_log(tmp_path / "new", total=1, console=QUIET, **sinks)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", ["10-12", "3:2", "0:2", "2:", ":", "x", "1:2:3", "-1:2", "1.0:2"])
def test_steps_to_profile_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=f"config.profile={text!r}: expected first:last"):
        metrics.profile_steps(text)


def test_utilisation_is_the_share_of_what_the_devices_could_do(tmp_path, monkeypatch):
    ends = iter([0.0, 1.0, 3.0])
    monkeypatch.setattr(metrics, "_end", lambda metrics: next(ends))
    log = metrics.open_log(tmp_path, total=3, peak=8e9, console=QUIET)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1.0}, flops=4e9)
    log.close()
    (_, second, third) = lines(tmp_path)
    assert second["flops_per_second"] == 4e9 and second["mfu"] == 0.5 and third["mfu"] == 0.25


def test_the_device_waits_from_the_end_of_a_step_until_the_next_is_dispatched(tmp_path, monkeypatch):
    ends = iter([1.0, 2.0, 4.0, 9.0, 10.0])
    monkeypatch.setattr(metrics, "_end", lambda metrics: next(ends))
    log = metrics.open_log(tmp_path, total=9, every=3, console=QUIET)
    # The first is not timed; 2 and 3 take 1 and 2 s, of which 0 (early) and 1.5 s go by until they are
    # dispatched; 4 comes behind a pause, and 5 takes 1 s, all of it under way.
    for step, dispatched in enumerate((0.0, 0.5, 3.5, 8.0, 8.5), 1):
        log.write(step, {"loss": 1.0}, dispatched=dispatched)
        if step == 3:
            log.flush()
    log.close()
    assert [row["device_waited_share"] for row in lines(tmp_path)] == [pytest.approx(1.5 / 3)]
    assert (log.meter.waited, log.meter.seconds) == (0.0, 1.0)


class Pending:
    """A metric whose step ends when the test says so."""

    def __init__(self):
        self.ended = threading.Event()

    def block_until_ready(self):
        assert self.ended.wait(timeout=60)
        return self

    def __float__(self):
        return 1.0


@pytest.mark.parametrize(("until_dispatched", "share"), [(3.0, 0.75), (0.0, 0.0)], ids=["slow", "fast"])
def test_the_device_waits_for_a_slow_stream_and_not_for_a_fast_one(tmp_path, monkeypatch, until_dispatched, share):
    """By a clock of the test's own: a step takes 1 s, and its end is noted then, not when the next one is written."""
    clock = [0.0]
    monkeypatch.setattr(metrics, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    console = Console(file=io.StringIO(), width=200)
    log = metrics.open_log(tmp_path, total=8, every=8, console=console)
    for step in range(1, 9):
        clock[0] += until_dispatched  # the stream makes the batch
        pending = Pending()
        log.write(step, {"loss": pending}, dispatched=clock[0], examples=1, tokens=1, slots=1)
        clock[0] += 1.0
        pending.ended.set()
        log.pending.ended.result(timeout=60)
    log.close()
    (row,) = lines(tmp_path)
    assert (row["device_waited_share"], row["step_seconds"]) == (share, 1.0 + until_dispatched)
    assert ("device waits 75%" in console.file.getvalue()) == (share > 0)
    assert "peak memory of the process" in console.file.getvalue()


def test_peak_memory_is_the_fullest_devices_or_the_process(monkeypatch):
    assert metrics.peak_memory().keys() == {"process_peak_bytes"}  # CPUs tell nothing
    stats = [{"peak_bytes_in_use": 3 << 30, "bytes_in_use": 1}, {"peak_bytes_in_use": 5 << 30}]
    devices = [types.SimpleNamespace(memory_stats=lambda stat=stat: stat) for stat in stats]
    monkeypatch.setattr("jax.local_devices", lambda: devices)
    assert metrics.peak_memory() == {"device_peak_bytes": 5 << 30}

"""The loop without a model: signals, steps that are not finite, evaluations that are owed, and how a run goes on."""

import contextlib
import os
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from slpojax import checkpoint, loop, metrics, settings, stopping, tracing
from slpojax.base import State

TOTAL = 8


class Stream:
    """Batches of two examples, from a position that can be saved."""

    def __init__(self, at=0):
        self.at = at

    def __iter__(self):
        while self.at < TOTAL:
            self.at += 1
            yield types.SimpleNamespace(index=np.array([2 * self.at - 2, 2 * self.at - 1]))

    def get_state(self):
        return {"at": self.at}


def like(value: float = 0.0, step: int = 0) -> State:
    return State(jnp.int32(step), {"w": jnp.full(3, value)}, (), None, jax.random.key(0))


def start(folder, request=None, **changes) -> tuple[loop.Loop, list[int]]:
    """Open a run of 8 steps in a folder; return it and the list in which it notes its evaluations."""
    changes = {"output": str(folder), "eval_every": 2, "checkpoint_every": 3, "schedule": "constant"} | changes
    config = settings.resolve(base.get_config(), changes, choices={})
    checkpoints = checkpoint.open_folder(folder / "checkpoints")
    restored = checkpoint.restore(checkpoints, like(), config=config.to_dict(), force=config.resume == "force")
    evaluated: list[int] = []

    def measure(step, state):
        evaluated.append(step)
        return {"loss": float(state.params["w"][0])}

    run = loop.Loop(
        total=TOTAL,
        restored=restored.state if restored else None,
        done=restored.step if restored else 0,
        config=config,
        contents={},
        rows=range(100, 100 + 2 * TOTAL),
        source=np.zeros(2 * TOTAL, int),
        names=(),
        stream=Stream(restored.data["at"] if restored else 0),
        log=metrics.open_log(folder, total=TOTAL, step=restored.step if restored else None),
        checkpoints=checkpoints,
        trace=tracing.tracer(folder, ""),
        measure=measure,
        request=request or stopping.Request(),
        opened=contextlib.ExitStack(),
    )
    if restored:
        run.owed, run.skipped = restored.notes["owed"], list(restored.notes["skipped"])
    return run, evaluated


def go(run: loop.Loop, at: dict | None = None, loss=lambda n: 1.0, weight=lambda n: float(n)) -> list[int]:
    """Take the steps of a run; `at` has what happens before the step of a number is noted. Return the steps taken."""
    taken = []
    try:
        state = run.restored or like()
        run.begin(state, [], "tiny", None)
        for n, _ in run.batches():
            state = like(weight(n), n)
            (at or {}).get(n, lambda: None)()
            taken.append(n)
            run.note(n, state, {"loss": loss(n), "grad_norm": 1.0}, {"examples": 2}, 0.0)
    finally:
        run.close()
    return taken


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_behind_its_step_and_the_next_start_goes_on(tmp_path, number):
    with stopping.listening() as request:
        run, evaluated = start(tmp_path, request)
        with pytest.raises(
            stopping.Stopped, match=f"stopped by {number.name} behind step 4 of 8: checkpoint .*/4;"
        ) as e:
            go(run, {4: lambda: os.kill(os.getpid(), number)})
    assert e.value.status == 128 + number
    assert evaluated == [0, 2]  # that of step 4 would take the time that is left
    run, evaluated = start(tmp_path)
    assert go(run) == [5, 6, 7, 8]
    assert evaluated == [4, 6, 8]
    steps = [(row["split"], row["step"]) for row in metrics.read_jsonl(tmp_path / "metrics.jsonl")]
    assert sorted(steps) == sorted([("eval", n) for n in (0, 2, 4, 6, 8)] + [("train", n) for n in range(1, 9)])


def test_without_checkpoints_a_signal_ends_a_run_and_says_that_nothing_is_saved(tmp_path):
    request = stopping.Request()
    run, _ = start(tmp_path, request, checkpoint_every=-1)
    with pytest.raises(stopping.Stopped, match="no checkpoint, as config.checkpoint_every is -1"):
        go(run, {3: lambda: setattr(request, "number", signal.SIGTERM)})


def test_a_second_signal_is_obeyed_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background ignores it
    try:
        with pytest.raises(KeyboardInterrupt), stopping.listening() as request:
            os.kill(os.getpid(), signal.SIGINT)
            assert request.at(1) == signal.SIGINT
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_step_that_is_not_finite_stops_the_run_with_its_rows_and_advice_that_can_be_followed(tmp_path):
    says = (
        r"step 6 is not finite: loss = nan. Its batch holds the rows 110, 111. To mend it, go on from step 3 with a low"
    )
    run, _ = start(tmp_path)
    with pytest.raises(FloatingPointError, match=says + ".*--config.resume=force; or .*nonfinite=skip"):
        go(run, loss=lambda n: np.nan if n == 6 else 1.0)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3"]
    with pytest.raises(ValueError, match="learning_rate was 1e-06 and is 1e-07"):
        start(tmp_path, learning_rate=1e-7)
    run, _ = start(tmp_path, learning_rate=1e-7, resume="force")
    assert go(run) == [4, 5, 6, 7, 8]


def test_the_advice_does_not_lead_back_to_the_state_that_failed(tmp_path):
    run, _ = start(tmp_path, checkpoint_every=1)
    with pytest.raises(FloatingPointError, match=r"go on from step 1 .*, once .*/2, whose weights lead here, is moved"):
        go(run, loss=lambda n: np.nan if n == 3 else 1.0)
    run, _ = start(tmp_path / "new", checkpoint_every=1)
    with pytest.raises(FloatingPointError, match=r"start with a lower rate: --config.learning_rate=...; or leave"):
        go(run, loss=lambda n: np.nan)


def test_skipped_steps_are_counted_over_restarts_up_to_their_limit(tmp_path, capsys):
    changes = {"nonfinite": "skip", "nonfinite_limit": 2}
    request = stopping.Request()
    run, _ = start(tmp_path, request, **changes)
    broken = lambda n: np.inf if n in (2, 4, 6) else 1.0  # noqa: E731
    with pytest.raises(stopping.Stopped):
        go(run, {5: lambda: setattr(request, "number", signal.SIGTERM)}, broken)
    assert (
        "step 4 is not finite: loss = inf. Its batch holds the rows 106, 107; skipped, 2 of" in capsys.readouterr().out
    )
    run, _ = start(tmp_path, **changes)
    with pytest.raises(FloatingPointError, match="3 steps were not finite, config.nonfinite_limit=2"):
        go(run, loss=broken)
    assert "3 step(s) were not finite and were skipped: 2, 4, 6" in capsys.readouterr().out


@pytest.mark.parametrize("every", [3, -1])
def test_weights_that_are_not_finite_are_neither_saved_nor_handed_on(tmp_path, every):
    run, _ = start(tmp_path, checkpoint_every=every)
    with pytest.raises(FloatingPointError, match=r"behind step (6|8) (is|are) not finite: (params/)?w"):
        go(run, weight=lambda n: np.inf if n > 4 else 1.0)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == (["3"] if every == 3 else [])

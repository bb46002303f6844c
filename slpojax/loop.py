"""Going round: the stream of batches, the log, evaluations, checkpoints, where a run goes on and when it ends.

Saving and resuming, signals, and steps that are not finite live here and nowhere else. Knows a configuration, states
and the names of metrics; knows no model and no objective.
"""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from slpojax import checkpoint, data, flops, hosts, log, metrics, places, settings, stopping, sums, tracing, wording
from slpojax.base import Batch, Shapes, Share, State
from slpojax.columns import Part
from slpojax.hosts import stops
from slpojax.places import sending
from slpojax.settings import Config

Measure = Callable[[int, State], Mapping[str, float]]  # (step, state) -> metrics


@dataclasses.dataclass
class Loop:
    """A run under way, from `start`: `batches` yields what is trained on, `note` takes what each step gives.

    Attributes:
        total: the steps of the run.
        restored: the state of the newest checkpoint, on its devices; None in a new run. `begin` lets go of it.
        done: steps behind that state.
        config: every key of slpojax/defaults.py.
        contents: digests of what the configuration names by its place.
        rows: [N] what a message calls the source records of the examples.
        source: [N] of each example the number of its source in `names`.
        names: of the sources of a mixture; () where there is one source alone.
        stream: the batches from there on.
        log: where metrics go.
        checkpoints: the folder.
        trace: traces some steps.
        measure: (step, state) -> metrics.
        request: a signal that asks the run to end.
        opened: what is let go of at the end.
        mirror: sends the files of a run whose folder is in a bucket.
        owed: whether the evaluation behind the restored step is still to come.
        skipped: steps that were not finite and left the state as it was, of the whole run.
        indices: the examples of the newest batches, by step.
        last: the metrics of the newest step, on their way from the device.
    """

    total: int
    restored: State | None
    done: int
    config: Config
    contents: Mapping[str, str]
    rows: Sequence[int] | Sequence[str]
    source: np.ndarray
    names: Sequence[str]
    stream: Any  # an iterator of batches whose position `get_state` gives
    log: metrics.Log
    checkpoints: checkpoint.Checkpoints
    trace: tracing.Tracer
    measure: Measure
    request: stopping.Request | stops.Stops
    opened: contextlib.ExitStack
    mirror: sending.Mirror = dataclasses.field(default_factory=lambda: sending.Mirror("", writes=False))
    owed: bool = False
    skipped: list[int] = dataclasses.field(default_factory=list)
    indices: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    last: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Yield (number of the step, a host's part of its batch), from the first step that is not done to the last."""
        for n, batch in enumerate(self.stream, self.done + 1):
            self.trace.before(n, self.last)
            self.indices[n] = np.asarray(batch.index)
            self.indices.pop(n - 3, None)  # of the step before the last, all is known
            hosts.note(n)
            yield n, batch

    def begin(self, state: State, notes: Iterable[str], size: str, compare: Callable[[State], str] | None) -> None:
        """Say where the run stands; of a new one, how far the policy is from the reference, and evaluate it.

        Args:
            state: before the first step, or the restored one.
            notes: lines to show first.
            size: says how large the model is.
            compare: state -> a line that says how far the policy is from the reference; None without one.
        """
        for note in notes:
            log.say(note)
        if self.restored is not None:
            log.say(f"resumed behind step {self.done} of {self.total}")
            self.restored = None  # its buffers are donated to the first step
            if self.owed:
                self._evaluate(self.done, state)
            return
        log.say(f"{size}, {self.total} steps")
        if compare:
            log.say(compare(state))
        self._evaluate(0, state)

    def note(self, n: int, state: State, metrics: Mapping[str, Any], counts: Mapping[str, Any], asked: float) -> None:
        """Log a step that has been dispatched; evaluate and save where they are due.

        Args:
            n: the number of the step.
            state: after it.
            metrics: scalars, on their way from the device.
            counts: what the batch holds, for the log's rates.
            asked: `time.perf_counter()` just before the step was dispatched.

        Raises:
            FloatingPointError: the step, the one before or the state is not finite, see `config.nonfinite`.
            Stopped: a signal asked the run to end; it can go on from here.
        """
        config, last = self.config, n == self.total
        self.last = metrics
        self.log.write(n, metrics, dispatched=asked, sources=self._sources(n), **counts)
        self.mirror.due()
        self._look_at_broken()
        due = last or bool(config.eval_every and n % config.eval_every == 0)
        if number := self.request.at(n):
            self._stop(n, state, number, owed=due)
        measured = self._evaluate(n, state) if due else None
        every = config.checkpoint_every
        if every >= 0 and (last or (every and n % every == 0)):
            self._save(n, state, measured)
        elif last:
            self.log.flush()
            self._look_at_broken()
            if broken := sums.of_floats(state.params):
                raise FloatingPointError(f"the weights behind step {n} are not finite: {', '.join(broken[:3])}")

    def _sources(self, n: int) -> dict[str, np.ndarray]:
        """Return the places in the batch of a step of each source's examples."""
        index = self.indices[n]
        of_batch = np.where(index >= 0, self.source[index], -1)
        return {name: np.flatnonzero(of_batch == k) for k, name in enumerate(self.names)}

    def close(self) -> None:
        """Write what is held, wait for the last checkpoint, and let go of the folder."""
        hosts.note(-1)
        error = sys.exception()  # why the run ends here, if it is one
        if error and not isinstance(error, stopping.Stopped):
            hosts.failing(error)
        self.trace.close()
        self.log.close()
        with self.opened:
            try:
                self.mirror.send()
            finally:
                checkpoint.close(self.checkpoints)
                number = self.request.leave()
        if number and error is None:
            said = stops.said(number)
            raise stopping.Stopped(f"{said} behind the last step; the same command goes on from it", number)
        if self.skipped:
            log.say(f"{len(self.skipped)} step(s) were not finite and were skipped: {wording.few(self.skipped)}")

    def _save(self, n: int, state: State, measured: Mapping[str, float] | None, *, owed: bool = False) -> None:
        """Save the state, once all is known of the steps that led to it, and said where the run lies."""
        self.log.flush()
        self.mirror.send()
        self._look_at_broken()
        run = checkpoint.Run(
            data=self.stream.get_state(),
            config=self.config.to_dict(),
            contents=self.contents,
            notes={"skipped": self.skipped, "owed": owed},
        )
        try:
            checkpoint.save(self.checkpoints, n, state, run, measured)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}. To mend it, {self._advice(n + 1)}") from error

    def _stop(self, n: int, state: State, number: int, *, owed: bool) -> None:
        """Save, and end the run.

        Raises:
            Stopped: always.
        """
        if self.config.checkpoint_every < 0:
            where = "no checkpoint, as config.checkpoint_every is -1"
        else:
            self._save(n, state, None, owed=owed)
            checkpoint.wait(self.checkpoints)
            where = f"checkpoint {self.checkpoints.folder / str(n)}; the same command goes on from there"
        raise stopping.Stopped(f"{stops.said(number)} behind step {n} of {self.total}: {where}", number)

    def _look_at_broken(self) -> None:
        """Stop, or count and say what was skipped, where steps were not finite.

        Raises:
            FloatingPointError: names the step, the metrics and the rows.
        """
        broken, self.log.broken = self.log.broken, {}
        for n, values in broken.items():
            names = ", ".join(f"{name} = {value}" for name, value in values.items() if not math.isfinite(value))
            index = self.indices.get(n, np.zeros(0, int))
            rows = sorted({self.rows[i] for i in index if i >= 0})
            said = f"step {n} is not finite: {names}. Its batch holds the rows {wording.few(rows)}"
            if self.config.nonfinite == "stop":
                raise FloatingPointError(f"{said}. To mend it, {self._advice(n)}")
            self.skipped.append(n)
            log.say(f"{said}; skipped, {len(self.skipped)} of at most {self.config.nonfinite_limit}")
            if len(self.skipped) > self.config.nonfinite_limit:
                raise FloatingPointError(
                    f"{len(self.skipped)} steps were not finite, config.nonfinite_limit={self.config.nonfinite_limit}. "
                    f"To mend it, {self._advice(n)}"
                )

    def _advice(self, n: int) -> str:
        """Say how a run whose step n is not finite can go on; from the state right before it no rate changes that."""
        saved = sorted(self.checkpoints.manager.all_steps())
        before = [step for step in saved if step < n - 1]
        again = "--config.learning_rate=... --config.resume=force" if before else "--config.learning_rate=..."
        advice = (
            f"go on from step {before[-1]} with a lower rate: {again}"
            if before
            else f"start with a lower rate: {again}"
        )
        if n - 1 in saved:
            advice += f", once {self.checkpoints.folder / str(n - 1)}, whose weights lead here, is moved away"
        return (
            advice if self.config.nonfinite == "skip" else f"{advice}; or leave such steps out: --config.nonfinite=skip"
        )

    def _evaluate(self, n: int, state: State) -> dict[str, float] | None:
        """Write an evaluation, and return its metrics by the names that `best_metric` has."""
        metrics = self.measure(n, state)
        if not metrics:
            return None
        self.log.record(n, "eval", metrics)
        return {f"eval/{name}": value for name, value in metrics.items()}


def refuse(config: Config, names: Collection[str]) -> None:
    """Refuse what a configuration says of the loop and cannot mean, before anything expensive.

    Args:
        config: every key of slpojax/defaults.py.
        names: of an evaluation's metrics, as `best_metric` has them; none where nothing is evaluated.

    Raises:
        ValueError: names the key.
    """
    metrics.profile_steps(config.profile)
    metrics.require_sinks(tensorboard=config.tensorboard, wandb=config.wandb)
    groups = {"eval/diagnostic/": config.diagnostics, "eval/score/": config.scorer}
    checkpoint.check_best_metric(config.best_metric, names, [group for group, asked in groups.items() if asked])


def start(
    config: Config,
    like: State,
    part: Part,
    shapes: Shapes,
    total: int,
    share: Share,
    measure: Measure,
    contents: Mapping[str, str],
) -> Loop:
    """Open the folder of a run, restore its newest checkpoint, and open its log and its stream of batches.

    Args:
        config: every key of slpojax/defaults.py.
        like: shape, dtype and sharding of every leaf of the state.
        part: what is trained on, with cached log-probs.
        shapes: sizes of its batches.
        total: steps of the run.
        share: of a batch's rows that this process holds.
        measure: (step, state) -> metrics; no metrics where there is nothing to measure.
        contents: digests of what the configuration names by its place.

    Raises:
        ValueError: the folder holds another run.
    """
    output, here = places.path(config.output), sending.here(config.output)
    checkpoints = checkpoint.open_folder(
        output / "checkpoints",
        keep_last=config.keep_last,
        keep_best=config.keep_best,
        best_metric=config.best_metric,
    )
    if config.resume == "never":
        checkpoint.require_none(checkpoints)
    force = config.resume == "force"
    restored = checkpoint.restore(checkpoints, like, config=config.to_dict(), contents=contents, force=force)
    stream = data.batches(
        part.examples,
        shapes,
        seed=config.seed,
        steps=total,
        kind=config.data.order,
        ref=part.ref,
        previous=part.previous,
        share=share,
    )
    if restored:
        stream.set_state(restored.data)
    mirror = sending.mirror(config.output, jax.process_index() == 0)
    lines = metrics.open_log(
        here,
        total=total,
        step=restored.step if restored else None,
        every=config.log_every,
        tensorboard=config.tensorboard,
        wandb=config.wandb,
        config=config.to_dict(),
        peak=flops.peak(jax.devices()[0].device_kind, jax.device_count()),
    )
    trace = tracing.tracer(here / "profile", config.profile)
    if jax.process_index() == 0:
        (here / "config.json").write_text(settings.dump(config))
    opened = contextlib.ExitStack()
    together = hosts.together()
    if together:
        together.enter(restored.step if restored else 0)
    request = together or opened.enter_context(stopping.listening())
    run = Loop(
        total=total,
        restored=restored.state if restored else None,
        done=restored.step if restored else 0,
        config=config,
        contents=contents,
        rows=part.examples.places(),
        source=part.examples.source,
        names=part.examples.names,
        stream=stream,
        log=lines,
        checkpoints=checkpoints,
        trace=trace,
        measure=measure,
        request=request,
        mirror=mirror,
        opened=opened,
    )
    if restored:
        run.owed, run.skipped = restored.notes["owed"], list(restored.notes["skipped"])
    return run

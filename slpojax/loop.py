"""Going round: the stream of batches, the log, evaluations, checkpoints, and where a run goes on.

Saving and resuming live here and nowhere else. Knows a configuration, states and the names of metrics; knows no model
and no objective.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import grain
import jax

from slpojax import checkpoint, data, flops, log, metrics, settings, tracing
from slpojax.base import Batch, Shapes, Share, State
from slpojax.columns import Part
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
        stream: the batches from there on.
        log: where metrics go.
        checkpoints: the folder.
        trace: traces some steps.
        measure: (step, state) -> metrics.
        last: the metrics of the newest step, on their way from the device.
    """

    total: int
    restored: State | None
    done: int
    config: Config
    stream: grain.DatasetIterator
    log: metrics.Log
    checkpoints: checkpoint.Checkpoints
    trace: tracing.Tracer
    measure: Measure
    last: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Yield (number of the step, a host's part of its batch), from the first step that is not done to the last."""
        for n, batch in enumerate(self.stream, self.done + 1):
            self.trace.before(n, self.last)
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
            FloatingPointError: the loss or gradient norm of the step before is not finite.
        """
        config, last = self.config, n == self.total
        self.last = metrics
        self.log.write(n, metrics, dispatched=asked, **counts)
        due = config.eval_every and n % config.eval_every == 0
        measured = self._evaluate(n, state) if due or last else None
        every = config.checkpoint_every
        if every >= 0 and (last or (every and n % every == 0)):
            self.log.flush()
            at = self.stream.get_state()
            checkpoint.save(self.checkpoints, n, state, data=at, config=config.to_dict(), metrics=measured)

    def close(self) -> None:
        """Write what is held, wait for the last checkpoint, and let go of the folder."""
        self.trace.close()
        self.log.close()
        checkpoint.close(self.checkpoints)

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

    Raises:
        ValueError: the folder holds another run.
    """
    output = pathlib.Path(config.output)
    checkpoints = checkpoint.open_folder(
        output / "checkpoints",
        keep_last=config.keep_last,
        keep_best=config.keep_best,
        best_metric=config.best_metric,
    )
    if not config.resume:
        checkpoint.require_none(checkpoints)
    restored = checkpoint.restore(checkpoints, like, config=config.to_dict())
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
    lines = metrics.open_log(
        output,
        total=total,
        step=restored.step if restored else None,
        every=config.log_every,
        tensorboard=config.tensorboard,
        wandb=config.wandb,
        config=config.to_dict(),
        abort=config.abort_on_nonfinite,
        peak=flops.peak(jax.devices()[0].device_kind, jax.device_count()),
    )
    trace = tracing.tracer(output / "profile", config.profile)
    if jax.process_index() == 0:
        (output / "config.json").write_text(settings.dump(config))
    state, done = (restored.state, restored.step) if restored else (None, 0)
    return Loop(total, state, done, config, stream, lines, checkpoints, trace, measure)

"""Training, as one value: the method of a configuration, the sizes of its batches, its first state and its step.

"The step of this config" is `make(config, bench, method(config), layout(...))`: the program, benchmarks, tests and
notebooks all call it. Knows a configuration, a model and a method; runs nothing and reads no file.
"""

import functools
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from slpojax import bench as benches
from slpojax import checkpoint, data, flops, grid, log, objectives, optim, readers, scores, selectors, settings, step
from slpojax.base import Batch, Frozen, Logps, Model, Params, Shapes, State
from slpojax.bench import Bench
from slpojax.columns import Part
from slpojax.following import Bema, Moving, Rule, held_first
from slpojax.grid import Grid
from slpojax.settings import Config
from slpojax.step import Method, Metrics, Views

# Groups of the configuration that name a function, and what each function takes.
CHOICES: settings.Choices = {
    "objective": objectives.defaults,
    "selector": selectors.defaults,
    "optimizer": optim.defaults,
}

# Examples of a run and cells of a batch that a host has the memory for: some ten gigabytes each.
_MOST_EXAMPLES, _MOST_CELLS = 10**9, 2**29


class Layout(NamedTuple):
    """How long a run is, and the sizes of its batches.

    Attributes:
        steps: optimiser steps.
        unused: examples of the last pass that no full batch is left for.
        order: the examples of every batch.
        train: sizes of the batches that are read, all candidates of every example.
        scan: of those that go through the data once, without gradient.
        picked: of those that are trained on where a selector picks ahead of the step; None where the step itself reads
            all candidates.
    """

    steps: int
    unused: int
    order: list[np.ndarray]
    train: Shapes
    scan: Shapes
    picked: Shapes | None


class Training(NamedTuple):
    """A method on a bench, ready to run.

    Attributes:
        method: objective, selector and how the reference moves.
        layout: sizes of the batches.
        views: how policy and reference follow from the state and what is frozen.
        update: the pure (state, frozen, batch, hyper) -> (state, metrics), for who maps or lowers it.
        step: the same compiled, the state donated.
        picks: the compiled (state, frozen, batch) -> (picked candidates, metrics); None without `layout.picked`.
        first: (the policy's first parameters, the reference's where it moves) -> the first state, on its devices.
        like: shape, dtype and sharding of every leaf of the state.
        notes: what of the state is split less than its rules say, a line each.
        operations: (counts of the batch trained on, counts of all its candidates) -> operations of a step.
    """

    method: Method
    layout: Layout
    views: Views
    update: step.Update
    step: Callable[[State, Frozen, Batch], tuple[State, Metrics]]
    picks: Callable[[State, Frozen, Batch], tuple[Any, Metrics]] | None
    first: Callable[[Params, Params | None], State]
    like: State
    notes: list[str]
    operations: Callable[[Mapping[str, int | float], Mapping[str, int | float]], float]


class Stepped(NamedTuple):
    """What a step gives.

    Attributes:
        state: after it.
        metrics: scalars, on their way from the device.
        counts: what the batch holds, for the log.
        asked: `time.perf_counter()` just before the step was dispatched.
    """

    state: State
    metrics: dict[str, Any]
    counts: dict[str, int | float]
    asked: float


def method(config: Config) -> Method:
    """Return objective, selector and how the reference moves, as a configuration names them.

    Raises:
        ValueError: there is no such function or hyperparameter, or a value is out of range.
    """
    objective = objectives.build(**config.objective)
    selector = None
    if config.selector.name != "everything":
        selector = selectors.build(objective=objective.hyperparameters, **config.selector)
    c = config.reference
    rules: dict[str, Rule] = {
        "moving": Moving(c.every, c.mix),
        "bema": Bema(c.every, c.ema_power, c.bias_power, c.lag),
    }
    return Method(objective, selector, rules.get(c.mode))


def refuse(config: Config, bench: Bench, method: Method) -> None:
    """Refuse a method that asks for what the model's head does not give.

    Raises:
        ValueError: it reads log-probs of a reward model, or rewards of a language model; says which key helps.
    """
    parts = objectives.functions(method.objective.name)
    rewards = ["reward" in inspect.signature(part).parameters for part in parts]
    if bench.model.score is None:
        if any(rewards):
            raise ValueError(
                f"objective {method.objective.name} trains a score head, and the model has that of a language model; "
                "set --config.model.head=score"
            )
        return
    reads = [f"objective {method.objective.name}"] * (not all(rewards))
    reads += [f"selector {method.selector.name}"] if method.selector else []
    reads += [f"config.diagnostics={config.diagnostics}"] * bool(config.diagnostics)
    if reads:
        raise ValueError(
            f"{reads[0]} reads log-probs, and a reward model (model.head=score) has none; set "
            "--config.model.head=words, or take an objective of slpojax/objectives/reward.py alone"
        )


def optimizer(config: Config, steps: int) -> optax.GradientTransformationExtraArgs:
    """Return the optimiser of a configuration, for a run of so many steps."""
    return optim.build(
        **config.optimizer,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        warmup_steps=config.warmup_steps,
        total_steps=steps,
        clip_norm=config.clip_norm,
        moments=config.moments,
    )


def layout(config: Config, method: Method, parts: Sequence[data.Examples], devices: Grid) -> Layout:
    """Find the length of the run and the sizes of its batches.

    Args:
        config: batch_size, accumulate, epochs, steps, seed, selection, and of `data` order, row_length and pack.
        method: with `prompt` among its needs the prompts' tokens are scored wherever an objective reads the batch.
        parts: what is trained on, and what is evaluated on, if anything.
        devices: over which the rows are split; each takes its share of the micro-batches.

    Raises:
        ValueError: the examples fill no batch, do not fit the rows, or are more than memory takes.
    """
    examples, prompts = parts[0], "prompt" in method.needs
    size, packing = config.batch_size, {"row_length": config.data.row_length, "pack": config.data.pack}
    steps, unused = data.passes(len(examples), size, epochs=config.epochs, steps=config.steps)
    if not steps:
        raise ValueError(
            f"config.epochs={config.epochs:g} of {len(examples):,} examples do not fill one batch of config.batch_size="
            f"{size:,}; lower batch_size, or raise epochs"
        )
    if steps * size > _MOST_EXAMPLES:
        raise ValueError(
            f"{steps:,} steps of batch_size={size:,} are more than {_MOST_EXAMPLES:,} examples, whose order is kept in "
            f"memory; lower config.{'steps' if config.steps else 'epochs'} or batch_size"
        )
    order = data.order(examples.lengths, size, seed=config.seed, steps=steps, kind=config.data.order)
    groups = devices.devices * -(-config.accumulate // devices.devices)  # a device's micro-batches: all, shared out
    first = score_first(config, method, examples)
    train = data.plan(examples, order, multiple_of=groups, prompts=prompts and not first, **packing)
    if train.rows * train.length > _MOST_CELLS:
        raise ValueError(
            f"a batch is {train.rows:,} rows of {train.length:,} tokens, more than {_MOST_CELLS:,} cells; lower "
            "config.data.row_length, accumulate or batch_size"
        )
    picked = None
    if method.selector and first:
        picks = selectors.count(method.selector, train.candidates) - 1
        picked = data.plan(examples, order, multiple_of=groups, picks=picks, prompts=prompts, **packing)
    at_once, kind = _at_once(config, parts), "balanced" if config.data.pack else "by_length"
    scans = [(part, data.evaluation_order(part.lengths, at_once, kind=kind)) for part in parts]
    scan = data.plan_together(scans, multiple_of=devices.devices, prompts=prompts, **packing)
    return Layout(steps, unused, order, train, scan, picked)


def describe(config: Config, method: Method, layout: Layout) -> None:
    """Show what the keys do not say at first sight, what a selector takes from the objective, and how it scores."""
    for note in settings.notes(config, layout.steps, reference="ref" in method.needs):
        log.say(note)
    if method.selector is None:
        return
    for key, value in method.selector.hyperparameters.items():
        if config.selector.get(key) == selectors.FOLLOW != value:
            log.say(f"selector {method.selector.name}: {key}={value!r}, the objective's")
    if config.selection == "cheaper":
        way = "score_first" if layout.picked else "together"
        log.say(f"selection: {way} is the cheaper way to {method.selector.name} here")


def score_first(config: Config, method: Method, examples: data.Examples) -> bool:
    """Tell whether all candidates are scored without gradient before the picked ones are trained on."""
    if method.selector is None or config.selection != "cheaper":
        return method.selector is not None and config.selection == "score_first"
    picks = selectors.count(method.selector, examples.candidates) - 1
    tokens = float(examples.lengths.prompt.mean()), float(examples.lengths.response.mean())
    return selectors.cheaper(*tokens, examples.candidates, picks) == "score_first"


def _at_once(config: Config, parts: Sequence[data.Examples]) -> int:
    """Return how many examples are scored at once where there is no gradient."""
    # Where a micro-batch can be trained on, four times the rows can be scored: without a gradient the activations of
    # one layer exist at a time; a step keeps those of all layers, or of one layer with all that its derivative takes.
    # Measured for 4 layers of width 256: 88 MB, where a step takes from 107 MB (remat=layer) to 400 MB (none).
    micro = -(-config.batch_size // config.accumulate)
    # The same sizes serve both parts, so the smaller one, most often the held-out one, should fill its batches.
    count = [len(examples) for examples in parts]
    batches = -(-min(count) // (4 * micro))
    size = config.reference.batch_size or max(micro, -(-min(count) // batches))
    return min(size, max(count))


def make(
    config: Config,
    bench: Bench,
    method: Method,
    layout: Layout,
    *,
    online: bool = False,
    ref_model: Model | None = None,
) -> Training:
    """Return the training of a configuration, compiled when it first runs.

    Args:
        config: of the optimiser.
        bench: devices, model and keys.
        method: objective, selector and how the reference moves.
        layout: sizes of the batches.
        online: whether a reference that stays is computed in the step; it is counted among the operations.
        ref_model: that reference's model; None where it is like the policy's.
    """
    scheduled = config.schedule_steps or layout.steps
    model, devices, rule = bench.model, bench.grid, optimizer(config, scheduled)
    views = step.views_of(bench.plan)._replace(reference_model=ref_model)
    shape = jax.eval_shape(model.init, bench.keys.init)
    reference = (ref_model, jax.eval_shape(ref_model.init, bench.keys.init)) if ref_model else None
    learned = scores.learned(model, shape, method.objective.needs, layout.train.candidates, reference)
    first, moved = functools.partial(_first_state, rule, method, learned, bench), shape
    if not bench.plan.all:
        moved = benches.params_like(bench)
    like = jax.eval_shape(first, moved, moved if method.moving else None)
    where, notes = grid.tree(devices, model.sharding, like)
    like = grid.placed(like, where)
    notes = [f"sharding: {note}" for note in notes]

    trained = method._replace(selector=None) if layout.picked else method
    shapes, by_source = layout.picked or layout.train, bool(config.data.mixture)
    update = step.update(model, views, trained, rule, shapes, devices, each=by_source)
    if config.nonfinite == "skip":
        update = step.skipping(update)
    update = _with_rate(config, scheduled, update)
    picks = None
    if method.selector and layout.picked:
        pick = step.picks(model, views, method.selector, layout.train, devices)
        picks = jax.jit(pick, out_shardings=devices.everywhere)
    weights, ref_weights = (
        flops.weights(of, jax.eval_shape(one.score or one.unembed, of))
        for one, of in ((model, shape), reference or (model, shape))
    )
    own = flops.moved(shape, moved, weights)
    return Training(
        method=method,
        layout=layout,
        views=views,
        update=update,
        step=jax.jit(update, donate_argnums=0, out_shardings=(where, devices.everywhere)),
        picks=picks,
        first=jax.jit(first, out_shardings=where, donate_argnums=0),
        like=like,
        notes=notes,
        operations=functools.partial(
            _operations, *own, ref_weights, method, picks is not None, online or method.moving is not None
        ),
    )


def first_state(config: Config, bench: Bench, training: Training, reference: Params | None) -> State:
    """Return the state before the first step: of the model, or the last of the run that `config.start` names.

    Args:
        config: `start`, and where the model's parameters come from.
        bench: devices and model.
        training: from `make`.
        reference: the parameters that a moving reference starts from; a state that is carried on has its own.
    """
    if config.start:
        benches.require_same_base(config, bench)
        return checkpoint.last_state(config.start, training.like)
    return training.first(benches.first_trained(config, bench), reference)


def _with_rate(config: Config, steps: int, update: step.Update) -> step.Update:
    """Return an update whose metrics have the learning rate that it used, `learning_rate`."""

    @functools.wraps(update)  # its name is the compiled program's
    def with_rate(
        state: State, frozen: Frozen, batch: Batch, hyper: step.Hyper = step.AS_BUILT
    ) -> tuple[State, Metrics]:
        rate = optim.make_schedule(
            config.schedule,
            learning_rate=config.learning_rate if hyper.learning_rate is None else hyper.learning_rate,
            warmup_steps=config.warmup_steps,
            total_steps=steps,
        )
        after, metrics = update(state, frozen, batch, hyper)
        return after, metrics | {"learning_rate": rate(optim.updates(state.optimizer))}

    return with_rate


def batch_like(shapes: Shapes, devices: Grid, *, cached: bool, previous: bool = False) -> Batch:
    """Return the shapes of what `grid.put_batch` gives, and where it lies: enough to compile for.

    Args:
        shapes: the batch's sizes.
        devices: need not be there.
        cached: whether the batch holds the reference's log-probs.
        previous: whether it holds those of a second frozen model.
    """
    blank = data.pack([], shapes)
    token = np.zeros((shapes.examples, shapes.candidates, shapes.response), np.float32)
    logps = Logps(token, token, blank.length)
    blank = blank._replace(ref=logps if cached else None, previous=logps if previous else None)
    rows, scored = jax.tree.map(lambda _: devices.rows, (blank.rows, blank.scored))
    where = jax.tree.map(lambda _: devices.everywhere, blank)._replace(rows=rows, scored=scored)
    return grid.placed(blank, where)


def take(training: Training, bench: Bench, part: Part) -> Callable[[State, Frozen, Batch], Stepped]:
    """Return (state, frozen, a host's part of a batch) -> what the step gives: picks, places, and takes it.

    Args:
        training: from `make`.
        bench: the devices.
        part: what is trained on; the picked candidates are packed from its examples.
    """
    layout, share = training.layout, bench.grid.share

    def one(state: State, frozen: Frozen, batch: Batch) -> Stepped:
        asked, whole = time.perf_counter(), counts(batch, layout.train, bench.grid)
        metrics: Metrics = {}
        trained = whole
        if training.picks and layout.picked:
            picked, metrics = training.picks(state, frozen, grid.put_batch(bench.grid, batch))
            chosen = grid.gather(picked)
            batch = data.make_picked(
                part.examples, layout.picked, batch.index, chosen, ref=part.ref, previous=part.previous, share=share
            )
            trained = counts(batch, layout.picked, bench.grid)
        placed = grid.put_batch(bench.grid, batch)
        asked = asked if training.picks else time.perf_counter()  # scoring first keeps the device busy, too
        state, of_step = training.step(state, frozen, placed)
        flop = training.operations(trained, whole)
        return Stepped(state, of_step | metrics, {**trained, "flops": flop}, asked)

    return one


def counts(batch: Batch, shapes: Shapes, devices: Grid) -> dict[str, int]:
    """Count what a batch holds, over all hosts: this one's share as an estimate for the others.

    Args:
        batch: a host's part, NumPy arrays.
        shapes: its sizes.
        devices: whose share it is.
    """
    rows, many = batch.rows, devices.share.of / len(devices.share.parts)
    tokens, of_prompt = np.count_nonzero(rows.example), (rows.example > 0) & (rows.branch == 0)
    prompts = np.count_nonzero(of_prompt)
    targets = np.count_nonzero(of_prompt & (rows.position > 0)) if shapes.prompt else 0
    responses = np.count_nonzero(np.asarray(batch.length)) / shapes.examples  # of an example
    return {
        "examples": shapes.examples,
        "tokens": int(tokens * many),
        "effective_tokens": int(int(tokens + (responses - 1) * prompts) * many),
        "scored": int(batch.length.sum()) + int(targets * many),
        "slots": int(rows.token.size * many),
    }


def size(training: Training, frozen: Frozen) -> str:
    """Say how many parameters there are, and on what."""
    count, still = map(flops.count, (training.like.params, frozen.base))
    beside = f"{still:,} frozen and {count:,} trained" if still else f"{count:,}"
    return f"{beside} parameters on {jax.device_count()} {jax.devices()[0].device_kind} device(s)"


def _first_state(
    rule: optax.GradientTransformation,
    method: Method,
    learned: Mapping[str, Any],
    bench: Bench,
    params: Params,
    ref_params: Params | None,
) -> State:
    """Return the state before the first step."""
    reference = held_first(method.moving, ref_params, params)
    params = params | readers.draw(bench.keys.readers, learned)
    zero, statistics = jax.numpy.zeros((), jax.numpy.int32), jax.tree.map(jax.numpy.float32, method.objective.state)
    return State(zero, params, rule.init(params), statistics, bench.keys.step, reference)


def _operations(
    weights: tuple[int, int],
    moved: tuple[int, int],
    ref_weights: tuple[int, int],
    method: Method,
    scored_first: bool,
    online: bool,
    trained: Mapping[str, int | float],
    whole: Mapping[str, int | float],
) -> float:
    """Return the operations of a step: those of its gradient, of an online reference, and of scoring first."""

    def reference(needs: frozenset[str]) -> int:
        return flops.FORWARD if online and ("ref" in needs or scores.takes_weights(needs)) else 0

    beside = reference(method.objective.needs if scored_first else method.needs)
    first = flops.FORWARD if method.selector and scored_first else 0
    beside_first = reference(method.selector.needs) if method.selector and scored_first else 0
    policy = flops.of_step(*weights, (flops.FROZEN, trained), (first, whole))
    policy += flops.of_step(*moved, (flops.TRAIN - flops.FROZEN, trained))
    return policy + flops.of_step(*ref_weights, (beside, trained), (beside_first, whole))

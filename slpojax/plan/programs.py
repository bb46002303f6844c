"""The programs of a configuration for devices that need not be there, with all that they take as shapes.

They are the run's own: `training.make` of `training.layout` and `training.method`. Nothing is loaded but, where a
reference has a folder of its own, its config.json. Knows a configuration; prints nothing.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from slpojax import adapters, data, flops, folders, frozen, grid, hf, named, scores, settings, step, training
from slpojax import bench as benches
from slpojax.base import Batch, Frozen, Model, Shapes
from slpojax.bench import Bench
from slpojax.data import Examples, drawn
from slpojax.grid import Grid
from slpojax.settings import Config
from slpojax.training import Training

STEP, PICKS = "step", "first pass"
_BATCHES = 8  # of drawn lengths: as many as set the sizes of the rows


class Planned(NamedTuple):
    """A configuration, ready to be compiled.

    Attributes:
        config: every key of slpojax/defaults.py.
        bench: devices and model.
        setup: the method on the bench.
        frozen: shapes of the weights that no step changes.
        examples: whose lengths set the sizes of the batches.
    """

    config: Config
    bench: Bench
    setup: Training
    frozen: Frozen
    examples: Examples


class Program(NamedTuple):
    """A program and what it takes.

    Attributes:
        function: from `jax.jit`.
        inputs: the shapes of its arguments, with their places: state, frozen weights, batch.
        shapes: sizes of the batch.
    """

    function: Any
    inputs: tuple[Any, Frozen, Batch]
    shapes: Shapes


class Work(NamedTuple):
    """What a step computes, by the convention of `slpojax.flops`, and what more its programs do.

    Attributes:
        examples: of a batch.
        tokens: that a model reads, a shared prompt once.
        effective_tokens: the same with a prompt for every response.
        useful: operations that the step is worth.
        executed: operations of one device: padding and recomputation count.
        moved: bytes that one device reads and writes at least: weights in every pass, gradients, the state.
        cells: of a batch's rows, padding included.
    """

    examples: int
    tokens: float
    effective_tokens: float
    useful: float
    executed: float
    moved: float
    cells: int


def candidates(config: Config) -> int:
    """Return K, the candidates of an example, as the keys of the data make them.

    Args:
        config: its group `data`.
    """
    d = config.data
    of_record = 1 if d.unpair else 2 if d.pairs else d.candidates
    return of_record * (1 + d.degrade) + d.mismatched + d.swapped


def like_hh(config: Config) -> Examples:
    """Return examples of HH's lengths, those cut that would not fit a row of a given length.

    Args:
        config: batch_size and `data`.
    """
    count, row_length, longest = candidates(config), config.data.row_length, config.data.max_length
    if row_length:  # a prompt and all its responses have to fit
        longest = min(longest, 2 * row_length // (1 + count))
    return drawn.examples(*drawn.lengths(_BATCHES * config.batch_size, count, longest=longest), vocabulary=2)


def prepare(config: Config, hf_config: Mapping[str, Any], devices: Grid, examples: Examples | None = None) -> Planned:
    """Return the step of a configuration on devices that need not be there.

    Args:
        config: every key of slpojax/defaults.py.
        hf_config: the content of the model's config.json.
        devices: the grid.
        examples: of the run; where None, drawn with the lengths of HH, in one pass.

    Raises:
        ValueError: the configuration is wrong, or its examples do not fit the rows; says which key helps.
    """
    at, method = benches.of_model(config, dict(hf_config), devices), training.method(config)
    training.refuse(config, at, method)
    frozen.refuse(config, method.asked)
    if examples is None:
        examples = like_hh(config)
        # Drawn examples are few, and how long a run is changes no size.
        layout = training.layout(_one_pass(config), method, [examples], devices)
        count = config.plan.examples or drawn.HH
        steps = data.passes(count, config.batch_size, epochs=config.epochs, steps=config.steps).steps
        layout = layout._replace(steps=max(1, steps))
    else:
        layout = training.layout(config, method, [examples], devices)
    of_weights = scores.takes_weights(method.needs)
    online = config.reference.mode == "online" and ("ref" in method.needs or of_weights)
    ref_model = reference(config, at) if online else None
    own = ref_model if ref_model is not at.model else None
    setup = training.make(config, at, method, layout, online=online, ref_model=own)
    stays = None
    if online:
        stays = benches.reference_like(config, at, ref_model if config.reference.path else None)
    return Planned(config, at, setup, Frozen(benches.base_like(config, at), stays), examples)


def _one_pass(config: Config) -> Config:
    return settings.replace(config, {"epochs": 1.0, "steps": 0})


def reference(config: Config, at: Bench) -> Model:
    """Return the model of a reference.

    Args:
        config: `reference.path`, whose folder is on this machine, or "".
        at: the bench, with the policy's model.
    """
    key = "reference.path"
    if not config.reference.path:
        return at.model
    folder = hf.resolve(config.reference.path, key=key, files=folders.SMALL)
    return frozen.model_of(config, at, key, adapters.base_of(folder, key))


def programs(planned: Planned) -> dict[str, Program]:
    """Return what a step runs: the first pass over all candidates, where there is one, and the step itself.

    Args:
        planned: from `prepare`.
    """
    config, setup, devices = planned.config, planned.setup, planned.bench.grid
    needs, layout = setup.method.needs, setup.layout
    cached = config.reference.mode == "cached" and "ref" in needs
    found = {}
    if setup.picks is not None:
        batch = training.batch_like(layout.train, devices, cached=cached)
        found[PICKS] = Program(setup.picks, (setup.like, planned.frozen, batch), layout.train)
    shapes = layout.picked or layout.train
    batch = training.batch_like(shapes, devices, cached=cached, previous="previous" in needs)
    return found | {STEP: Program(setup.step, (setup.like, planned.frozen, batch), shapes)}


def held(planned: Planned, program: Program) -> dict[str, int]:
    """Return the bytes that each device holds of what a program takes, by what it is.

    Args:
        planned: from `prepare`.
        program: one of its `programs`.
    """
    state, still, batch = program.inputs
    parts = {
        "parameters": grid.held(state.params),
        "moments": grid.held(state.optimizer),
        "moving reference": grid.held(state.reference),
        "frozen weights": grid.held(still.base),
        "reference": grid.held(still.reference),
        "batch": grid.held(batch),
    }
    parts["other state"] = grid.held(state) - parts["parameters"] - parts["moments"] - parts["moving reference"]
    return {name: size for name, size in parts.items() if size}


def shared(planned: Planned) -> int:
    """Return the bytes of a device that a program counts twice: of a reference that has the policy's frozen weights.

    Args:
        planned: from `prepare`.
    """
    still, layers = planned.frozen, planned.bench.plan.layers
    if still.base is None or still.reference is None or planned.config.reference.path:
        return 0
    base = named.flatten(still.base)
    return sum(grid.held(x) for path, x in named.flatten(still.reference).items() if path in base.keys() - layers)


def work(planned: Planned) -> Work:
    """Count what a step computes and moves.

    Args:
        planned: from `prepare`.
    """
    config, setup, devices = planned.config, planned.setup, planned.bench.grid
    lengths, layout, method = planned.examples.lengths, setup.layout, setup.method
    size, shapes = config.batch_size, layout.picked or layout.train
    prompt, response = float(lengths.prompt.mean()), lengths.response.mean(axis=0)
    picked = response
    if layout.picked:  # the first, and any of the others
        picked = np.array([response[0], *[response[1:].mean()] * (shapes.candidates - 1)])

    def counts(responses: np.ndarray, of: Shapes) -> dict[str, float]:
        scored = float(responses.sum()) + (prompt - 1) * (of.prompt > 0)
        return {"tokens": size * (prompt + float(responses.sum())), "scored": size * scored}

    trained, whole = counts(picked, shapes), counts(response, layout.train)
    cells = {name: _cells(of) for name, of in (("trained", shapes), ("whole", layout.train))}
    again = _again(planned, shapes, cells["trained"])
    return Work(
        examples=size,
        tokens=trained["tokens"],
        effective_tokens=trained["tokens"] + size * (np.count_nonzero(picked) - 1) * prompt,
        useful=setup.operations(trained, whole),
        executed=(setup.operations(cells["trained"], cells["whole"]) + again) / devices.mesh.size,
        moved=_moved(planned, shapes, method),
        cells=shapes.rows * shapes.length,
    )


def of_cache(planned: Planned) -> float:
    """Return the operations of a reference's pass over the examples of a batch before training; 0 where it has none.

    Args:
        planned: from `prepare`.
    """
    config, lengths = planned.config, planned.examples.lengths
    if config.reference.mode != "cached" or "ref" not in planned.setup.method.needs:
        return 0.0
    response = float(lengths.response.sum(axis=1).mean())
    counts = {"tokens": config.batch_size * (float(lengths.prompt.mean()) + response)}
    counts["scored"] = config.batch_size * response
    return flops.of_step(*weights(planned), (flops.FORWARD, counts))


def _cells(shapes: Shapes) -> dict[str, int]:
    """Return what a batch has room for, as `training.counts` counts what it holds."""
    return {"tokens": shapes.rows * shapes.length, "scored": shapes.groups * shapes.scored}


def _again(planned: Planned, shapes: Shapes, cells: Mapping[str, int]) -> float:
    """Return the operations that a step does a second time: recomputed layers, the head's logits, a first pass."""
    body, head = weights(planned)
    layers = planned.config.model.remat in ("layer", "offload")
    twice = _first_without_gradient(planned, shapes)
    of_body, of_head = flops.FORWARD * (layers + twice), flops.FORWARD * (1 + twice)
    return float(of_body * body * cells["tokens"] + of_head * head * cells["scored"])


def _first_without_gradient(planned: Planned, shapes: Shapes) -> bool:
    """Tell whether a step goes through all micro-batches before it goes through them with a gradient."""
    objective = planned.setup.method.objective
    several = shapes.groups > planned.bench.grid.devices
    return several and (objective.state is not None or step.couples_examples(objective, shapes))


def weights(planned: Planned) -> tuple[int, int]:
    """Return the weights that a token is multiplied with, in the layers and in the unembedding."""
    model = planned.bench.model
    params = jax.eval_shape(model.init, planned.bench.keys.init)
    return flops.weights(params, jax.eval_shape(model.score or model.unembed, params))


def _moved(planned: Planned, shapes: Shapes, method: step.Method) -> float:
    """Return the bytes that a device reads and writes at least in a step."""
    config, devices = planned.config, planned.bench.grid
    micro = shapes.groups // devices.devices
    wide = 2 if config.model.dtype == "bfloat16" else 4
    online = planned.frozen.reference is not None or method.moving is not None
    passes = 2 + (config.model.remat in ("layer", "offload")) + _first_without_gradient(planned, shapes) + online
    gathered = wide * sum(weights(planned)) / devices.mesh.shape["tensor"]
    state = planned.setup.like
    gradients = grid.held(state.params)  # float32, as the parameters: read and written in every micro-batch
    first = gathered if planned.setup.picks is not None else 0.0
    return micro * (passes * gathered + 2 * gradients) + first + 2 * grid.held(state)


def filled(work: Work) -> float:
    """Return the share of the cells that hold a token.

    Args:
        work: from `work`.
    """
    return min(1.0, work.tokens / work.cells)


def micro_batches(shapes: Shapes, devices: Grid) -> tuple[int, int]:
    """Return how many micro-batches a device takes in a step, and the rows of each.

    Args:
        shapes: of the batch.
        devices: the grid.
    """
    return shapes.groups // devices.devices, math.ceil(shapes.rows / shapes.groups)

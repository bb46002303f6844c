"""What the benchmarks of whole steps share: batches of dialogues, the step of a configuration, and what runs it.

Reads no data set, no tokenizer and no checkpoint, so that it runs on a machine that was lent with little on it.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from common import ROOT

from slpojax import bench, columns, data, grid, scores, settings, training
from slpojax.base import Batch, Frozen, Logps, Params, Shapes, State
from slpojax.bench import Bench
from slpojax.columns import Part
from slpojax.data import Examples, drawn
from slpojax.grid import Grid
from slpojax.settings import Config
from slpojax.training import Layout, Training

# ---- dialogues -------------------------------------------------------------------------------------------------------


lengths, examples = drawn.lengths, drawn.examples  # as HH has them; of random tokens


def batch_of(pool: Examples, shapes: Shapes) -> Batch:
    """Lay all examples out in rows."""
    return data.pack([pool[i] for i in range(len(pool))], shapes)


def full_rows(rows: int, length: int, vocabulary: int, groups: int = 1) -> tuple[Shapes, Batch]:
    """Return a batch of as many dialogues as so many rows hold, each group an equal share of the rows."""
    prompt, response = lengths(rows * length // 64)
    count = int(np.searchsorted(np.cumsum(prompt + response.sum(axis=1)), rows * length))
    while True:
        pool = examples(prompt[:count], response[:count], vocabulary)
        shapes = data.plan(pool, [np.arange(count)], row_length=length, multiple_of=groups)
        if shapes.rows <= rows:
            return shapes, batch_of(pool, shapes)
        count -= 1


# ---- steps -----------------------------------------------------------------------------------------------------------


def configure(changes: Mapping[str, Any], of: str = "base") -> Config:
    """Return a shipped configuration, that of all defaults if none is named, with some (dotted) keys changed."""
    return settings.replace(settings.load_file(str(ROOT / "configs" / f"{of}.py")), changes)


def setup(
    config: Config, hf_config: dict[str, Any], shapes: Shapes, devices: Grid | None = None
) -> tuple[Bench, Training]:
    """Return the bench of a configuration, and its step on batches of given sizes.

    Args:
        config: of the objective, the optimiser and how the model is computed.
        hf_config: the content of the model's config.json.
        shapes: of the batches; the groups of rows are a device's micro-batches.
        devices: the first there is where None.
    """
    at = bench.of_model(config, hf_config, devices or grid.one_device())
    layout = Layout(steps=1000, unused=0, order=[], train=shapes, scan=shapes, picked=None)
    return at, training.make(config, at, training.method(config), layout)


def other_params(at: Bench) -> Params:
    """Return the parameters of another random model than `bench.draw_params`: a reference that differs."""
    return bench.draw_params(at._replace(keys=bench.keys(1)))


def scorer(at: Bench, shapes: Shapes) -> Callable[[Params, Batch], Logps]:
    """Return (params, batch) -> log-probs without gradient, as the reference's cache is made."""
    score = scores.scorer(at.model, shapes, at.grid)
    return lambda params, batch: score(params, batch)[0]


def with_reference(at: Bench, scan: Shapes, examples: Examples, params: Params) -> Part:
    """Return examples with the log-probs of frozen parameters, as a run has them cached."""
    part, score = Part("train", examples, None), scorer(at, scan)
    pieces = columns.compute(lambda batch: score(params, batch), columns.batches(at.grid, part, scan))
    return part._replace(ref=columns.join(list(pieces), examples.lengths.response))


def repeated(steps: Training, held: list[State], batches: Sequence[Batch], frozen: Frozen) -> Callable[[], dict]:
    """Return what takes a step on the next of the batches, in a circle, and waits for it; `held[0]` is the state."""
    turn = itertools.cycle(batches)

    def run() -> dict:
        held[0], metrics = steps.step(held[0], frozen, next(turn))
        return jax.block_until_ready(metrics)

    return run


def runner(function: Callable[..., Any], *inputs: Any) -> Callable[[], Any]:
    """Return what calls the function and waits for the result."""
    return lambda: jax.block_until_ready(function(*inputs))

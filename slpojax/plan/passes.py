"""The programs of a run beside its step, with what they take as shapes: a frozen model's pass over the data, sampling.

They are those that the run calls: `scores.scoring`, with which `frozen` makes cached log-probs, and the two functions
of `slpojax.sampling`. Knows a configuration that is planned; prints nothing.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from slpojax import bench as benches
from slpojax import flops, folders, grid, parts, sampling, scores, training
from slpojax.base import Params
from slpojax.plan import programs
from slpojax.plan.programs import Planned
from slpojax.sampling import Called

REFERENCE, READ, SAMPLE = "reference's pass", "pass over prompts", "sampling"


class Pass(NamedTuple):
    """A program and what it takes.

    Attributes:
        function: from `jax.jit`.
        inputs: the shapes of its arguments, with their places.
        beside: bytes of each device that stay there while it runs, and that it is not given.
        rounds: how often a loop counts whose end depends on the data; None where there is none.
    """

    function: Any
    inputs: tuple[Any, ...]
    beside: int = 0
    rounds: int | None = None


class Sampled(NamedTuple):
    """What it takes to draw one more token for every slot.

    Attributes:
        slots: sequences at once, over all devices.
        tokens: the most of an answer.
        executed: operations of a device.
        moved: bytes that a device reads at least: the weights, keys and values.
    """

    slots: int
    tokens: int
    executed: float
    moved: float


def passes(planned: Planned) -> dict[str, Pass]:
    """Return the programs by name, in the order in which a run comes to them.

    Args:
        planned: from `programs.prepare`.
    """
    config, needs = planned.config, planned.setup.method.needs
    found: dict[str, Pass] = {}
    if (config.reference.mode == "cached" and "ref" in needs) or "previous" in needs:
        found[REFERENCE] = _of_reference(planned)
    if samples(planned):
        read, burst = called(planned)
        found[READ] = Pass(*read, beside=_not_given(planned, read), rounds=1)
        found[SAMPLE] = Pass(*burst, beside=_not_given(planned, burst), rounds=1)
    return found


def samples(planned: Planned) -> bool:
    """Tell whether a run of this configuration has prompts that it answers itself, and not by a server."""
    c = planned.config
    return bool((c.generate.prompts or c.judge.name) and not c.generate.engine and planned.bench.model.score is None)


def assumed(planned: Planned) -> list[str]:
    """Return lines on what of these programs is not known here, and on what a run has beside them."""
    path, second = planned.config.reference.path, planned.config.generate.second
    notes = []
    if path and not folders.here(path) and planned.frozen.reference is None:
        notes.append(f"reference's pass: with the policy's shape, as reference.path={path} is not on this machine")
    if second and samples(planned):
        notes.append(f"sampling: the policy's; another model gives the last answers (generate.second={second})")
    return notes


def _of_reference(planned: Planned) -> Pass:
    config, at, scan = planned.config, planned.bench, planned.setup.layout.scan
    other = programs.reference(config, at) if config.reference.path and folders.here(config.reference.path) else None
    weights = benches.reference_like(config, at, other)
    batch = training.batch_like(scan, at.grid, cached=False)
    return Pass(scores.scoring(other or at.model, scan, at.grid), (weights, batch, None))


def called(planned: Planned) -> tuple[Called, Called]:
    """Return what a run calls to read prompts, and for a burst of tokens.

    Args:
        planned: from `programs.prepare`; its examples say how long prompts are.
    """
    config, at = planned.config, planned.bench
    g, most = config.generate, parts.longest_answer(config)
    number = sampling.prompts_at_once(g.slots, g.samples)
    lengths = np.minimum(planned.examples.lengths.prompt, config.data.max_length - most)
    return sampling.called(
        at.model,
        benches.policy_like(config, at),
        np.resize(lengths, min(number, g.count or number)).tolist(),
        temperatures=[float(t) for t in g.temperature for _ in range(g.samples // len(g.temperature))],
        max_new_tokens=most,
        draw=sampling.Draw(top_k=g.top_k, top_p=g.top_p, min_p=g.min_p),
        slots=g.slots,
        grid=at.grid,
    )


def _not_given(planned: Planned, program: Called) -> int:
    """Return the bytes of a device of the weights as they are trained, of which sampling takes rounded copies."""
    whole: Params = benches.policy_like(planned.config, planned.bench)
    both = zip(jax.tree.leaves(whole), jax.tree.leaves(program.inputs[0]), strict=True)
    return grid.held([own for own, rounded in both if own.dtype != rounded.dtype])


def sampled(planned: Planned) -> Sampled | None:
    """Count what a token of every slot takes; None where nothing is sampled.

    Args:
        planned: from `programs.prepare`.
    """
    if not samples(planned):
        return None
    _, burst = called(planned)
    weights, state, devices = burst.inputs[0], burst.inputs[1], planned.bench.grid
    slots = state.done.size
    wide = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(weights))
    return Sampled(
        slots=slots,
        tokens=state.token.shape[2],
        executed=flops.FORWARD * sum(programs.weights(planned)) * slots / devices.mesh.size,
        moved=wide / devices.mesh.shape["tensor"] + grid.held(state.pool),
    )

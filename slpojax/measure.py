"""What is measured of a policy while it trains: the held-out preferences, a world's truth, and what gradients say.

Brings evaluation and diagnostics to a run; gets plain values and knows no configuration.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from slpojax import data, evaluate, explore, grid, logps, run, step
from slpojax.base import Model, Params, State
from slpojax.objectives import Objective
from slpojax.run import Part, Run
from slpojax.selectors import Selector

# (params, step) -> metrics of a policy in a world whose right answers are known.
Score = Callable[[Params, int], dict[str, float]]
Measure = Callable[[int, State], dict[str, float]]  # (step, state) -> metrics


def measurer(
    work: Run,
    objective: Objective,
    held_out: Part | None,
    ref_params: Params | None,
    score: Score | None,
    seed: int,
) -> Measure:
    """Return (step, state) -> the metrics of the held-out preferences and of the world."""
    evaluation = held_out and evaluate.make_evaluation(
        objective, lambda: run.batches(work, held_out), jax.random.key(seed)
    )

    def measure(n: int, state: State) -> dict[str, float]:
        metrics = {}
        if evaluation:
            given = functools.partial(run.given, work, state.params, state.reference or ref_params)
            metrics = evaluation(given, state.objective)
        return metrics | (score(state.params, n) if score else {})

    return measure


def diagnosed(
    measure: Measure,
    work: Run,
    objective: Objective,
    selector: Selector | None,
    held_out: Part,
    ref_params: Params | None,
    *,
    forward_model: Model,
    count: int,
    packing: dict[str, Any],
    seed: int,
) -> Measure:
    """Add to what is measured what the gradients of a few held-out examples say.

    Args:
        measure: see `measurer`.
        work: see `slpojax.run.Run`.
        objective: see `slpojax.objectives`.
        selector: see `slpojax.selectors`, or None.
        held_out: whose examples are looked at.
        ref_params: the reference's, where its log-probs are not kept.
        forward_model: the model with an attention that has a forward derivative.
        count: examples.
        packing: row_length and pack of `data.plan`.
        seed: of what the objective samples.
    """
    everywhere, devices = grid.replicated(work.mesh), grid.batch_devices(work.mesh)
    index = data.evaluation_order(held_out.examples.lengths, count)[0]
    shapes = data.plan(held_out.examples, [index], multiple_of=devices, prompts="prompt" in objective.needs, **packing)
    shapes = shapes._replace(lengths=())  # there is one batch, in whose order packed rows would come
    batch = next(run.batches(work._replace(scan=shapes), held_out, [index]))
    rows = shapes.rows // devices
    logps_of = logps.logps_function(work.model, shapes, rows_per_device=rows, everywhere=everywhere)
    diagnose = explore.make_diagnostics(
        work.model,
        objective,
        shapes,
        rows_per_device=rows,
        everywhere=everywhere,
        selector=selector,
        forward_model=forward_model,
    )

    def measure_and_diagnose(n: int, state: State) -> dict[str, float]:
        frozen = state.reference or ref_params
        ref = logps_of(frozen, batch) if batch.ref is None and frozen is not None else batch.ref
        given = step.columns(batch) | {"ref": ref, "state": state.objective}
        found = diagnose(state.params, batch, given, frozen, jax.random.key(seed))
        return measure(n, state) | {name: float(value) for name, value in found.items()}

    return measure_and_diagnose


def sanity(work: Run, state: State, ref_params: Params | None, pairs: Part) -> str:
    """Compare policy and reference on the first batch in order."""
    first = data.scan_order(pairs.examples, work.scan)[:1]
    given = run.given(work, state.params, state.reference or ref_params, next(run.batches(work, pairs, first)))
    return evaluate.sanity_of_start(given["policy"], given["ref"])

"""Diagnostics of a run: what the gradients of a few of its held-out examples say, at every evaluation.

Knows a configuration, a bench and states; what is computed of them is `diagnostics`'.
"""

from collections.abc import Callable

from slpojax import bench as benches
from slpojax import columns, data, scores, step
from slpojax.base import Frozen, State
from slpojax.bench import Bench
from slpojax.columns import Part
from slpojax.explore.diagnostics import make_diagnostics
from slpojax.settings import Config
from slpojax.step import Method, Views


def of_held_out(
    config: Config, bench: Bench, method: Method, views: Views, held_out: Part | None, frozen: Frozen
) -> Callable[[int, State], dict[str, float]] | None:
    """Return (step, state) -> what the gradients of a few held-out examples say; None where nobody asks.

    Args:
        config: the number of examples that are diagnosed, and how they are packed.
        bench: devices, model and keys.
        method: objective and selector.
        views: the policy and the reference of a state.
        held_out: the preferences; None for none.
        frozen: weights beside the state.
    """
    if held_out is None or not config.diagnostics:
        return None
    index = data.evaluation_order(held_out.examples.lengths, config.diagnostics)[0]
    shapes = data.plan(
        held_out.examples,
        [index],
        row_length=config.data.row_length,
        pack=config.data.pack,
        multiple_of=bench.grid.devices,
        prompts="prompt" in method.objective.needs,
    )
    shapes = shapes._replace(lengths=())  # there is one batch, in whose order packed rows would come
    batch = next(columns.batches(bench.grid, held_out, shapes, [index]))
    logps_of = scores.scorer(views.reference_model or bench.model, shapes, bench.grid)
    # An attention that has a forward derivative.
    forward_model = benches.model(config, bench.hf_config, bench.grid, attention="dense")
    diagnose = make_diagnostics(
        bench.model,
        method.objective,
        shapes,
        bench.grid,
        selector=method.selector,
        forward_model=forward_model,
        ref_model=views.reference_model,
        views=views,
    )

    def measure(n: int, state: State) -> dict[str, float]:
        ref_params = views.reference(state, frozen)
        ref = batch.ref
        if ref is None and ref_params is not None:
            ref = logps_of(ref_params, batch)[0]
        inputs = step.columns(batch) | {"ref": ref, "state": state.objective}
        found = diagnose(state.params, batch, inputs, ref_params, bench.keys.measure, frozen._replace(reference=None))
        return {name: float(value) for name, value in found.items()}

    return measure

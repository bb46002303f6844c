"""Train a policy on preferences: `python -m slpojax.train --config=configs/slpo_hh.py`.

The whole run from top to bottom: bench, method, data, frozen models, the step, the loop, the export.
"""

import sys

from slpojax import bench as benches
from slpojax import (
    contents,
    errors,
    explore,
    frozen,
    hosts,
    loop,
    measure,
    outcome,
    outputs,
    places,
    settings,
    simulate,
    training,
)
from slpojax import parts as data
from slpojax.settings import Config
from slpojax.step import Method

DEFAULT = "configs/quickstart.py"

CHOICES = training.CHOICES


def main() -> None:
    """Run what the command line asks for."""
    config = settings.from_command_line(sys.argv[1:], default=DEFAULT, choices=CHOICES)
    with errors.as_lines():
        hosts.start(config.mesh.distributed, config.mesh.patience)
        if config.world:
            check(config, training.method(config))  # before minutes go into a world
            config = simulate.prepare(config, train)
            train(config, simulate.judge(config))
        else:
            train(config)
        outcome.show(config.output, config.objective.name + f" in the world {config.world}" * bool(config.world))


def train(config: Config, score: measure.Score | None = None) -> None:
    """Train, evaluate, save and export, as `config` says; go on where an earlier process stopped.

    Args:
        config: every key of slpojax/defaults.py, resolved.
        score: judges a policy at every evaluation, beside the held-out preferences.

    Raises:
        ValueError: something in the configuration, the model folder or the data is wrong; the message says what to do.
        FloatingPointError: a loss or gradient is not finite.
        Stopped: a signal asked the run to end, and it can go on.
    """
    method = training.method(config)
    check(config, method)
    with outputs.alone(config.output):
        _train(config, method, score)


def _train(config: Config, method: Method, score: measure.Score | None) -> None:
    """Train in a folder that belongs to this run alone."""
    bench = benches.make(config)
    training.refuse(config, bench, method)
    parts = data.load(config, bench)
    data.refuse(config, method, parts)
    layout = training.layout(config, method, [part.examples for part in parts], bench.grid)
    held = contents.digests(config, bench, method, parts)
    hosts.require_same(held)
    data.describe(config, parts, layout.order, layout.train, layout.unused, bench.grid)
    training.describe(config, method, layout)

    base = benches.base_params(config, bench)
    parts, weights, first_reference, ref_model = frozen.prepare(config, bench, method, layout.scan, parts, base)
    online = weights.reference is not None
    setup = training.make(config, bench, method, layout, online=online, ref_model=ref_model)
    held_out = parts[1] if len(parts) > 1 else None
    diagnose = explore.of_held_out(config, bench, method, setup.views, held_out, weights)
    evaluate = measure.make(config, bench, method, setup.views, layout.scan, held_out, weights, score, diagnose)
    compare = measure.comparison(bench, method, setup.views, layout.scan, weights, parts[0])
    take = training.take(setup, bench, parts[0])

    run = loop.start(config, setup.like, parts[0], layout.train, layout.steps, bench.grid.share, evaluate, held)
    try:
        state = run.restored or training.first_state(config, bench, setup, first_reference)
        del first_reference  # it moves: from here on it is part of the state
        run.begin(state, setup.notes, training.size(setup, weights), compare if "ref" in method.needs else None)
        for n, batch in run.batches():
            state, metrics, counts, asked = take(state, weights, batch)
            run.note(n, state, metrics, counts, asked)
    finally:
        run.close()
    if config.export:
        policy = setup.views.policy(state.params, weights)
        benches.export(bench, places.path(config.output) / "hf", policy, parts[0].examples)


def check(config: Config, method: Method) -> None:
    """Refuse what the configuration alone shows to be wrong, before anything takes time."""
    benches.refuse(config)
    outputs.check(config.output, stores=() if config.world else ("gs",))
    frozen.refuse(config, method.asked)
    metrics = ["loss", *method.objective.metrics, *(simulate.METRICS if config.world else ())]
    data.check(config)
    names = [f"eval/{name}" for name in metrics] if config.world or settings.evaluated(config) else []
    of_objective = ["loss", *method.objective.metrics]
    names += [f"eval/source/{of}/{name}" for of in data.held_out_sources(config) for name in of_objective]
    loop.refuse(config, [*names, *measure.scorer_metrics(config)])


if __name__ == "__main__":
    main()

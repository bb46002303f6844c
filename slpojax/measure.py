"""Measurements of a policy while it trains: the held-out preferences, a judge's, and diagnostics of gradients.

The log-probs of the whole held-out part are brought to the host; the objective then runs on them once, as if the part
were one global batch, in the order of the data, and on all candidates, whatever a selector picks in training. So an
objective that couples examples means the same thing here as in training, and neither the batch size nor a last,
incomplete batch changes a number, also where an objective samples. Knows a configuration only for the diagnostics.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slpojax import columns, data, grid, named, needs, readers, scores, step, wording
from slpojax.base import ABSENT, Batch, Frozen, Key, Logps, Params, Shapes, State
from slpojax.bench import Bench
from slpojax.columns import Part
from slpojax.objectives import Objective
from slpojax.settings import Config
from slpojax.step import Inputs, Method, Views

# (params, step) -> metrics of a policy whose right answers are known.
Score = Callable[[Params, int], dict[str, float]]
Measure = Callable[[int, State], dict[str, float]]  # (step, state) -> metrics


def make(
    config: Config,
    bench: Bench,
    method: Method,
    views: Views,
    scan: Shapes,
    held_out: Part | None,
    frozen: Frozen,
    score: Score | None,
    diagnose: Measure | None = None,
) -> Measure:
    """Return (step, state) -> the metrics of the held-out preferences, of the judge, and of the diagnostics.

    Args:
        config: its `scorer`.
        bench: devices, model and keys.
        method: objective and selector.
        views: the policy and the reference of a state.
        scan: sizes of the batches that go through a part once.
        held_out: the preferences; None for none.
        frozen: weights beside the state.
        score: judges a policy, or None.
        diagnose: (step, state) -> what gradients say, or None.
    """
    measures: list[Measure] = []
    if held_out:
        inputs = model_inputs(bench, method.objective, views, scan, frozen)
        evaluate = evaluation(
            method.objective,
            lambda: columns.batches(bench.grid, held_out, scan),
            bench.keys.measure,
            held_out.examples.by_source() if held_out.examples.names else {},
        )
        measures.append(lambda n, state: evaluate(lambda batch: inputs(state, batch), state.objective))
    if score:
        measures.append(lambda n, state: score(views.policy(state.params, frozen), n))
    if config.scorer:
        measures.append(_from_scorer(config, bench, views, frozen))
    if diagnose:
        measures.append(diagnose)

    def measure(n: int, state: State) -> dict[str, float]:
        return {name: value for one in measures for name, value in one(n, state).items()}

    return measure


def scorer_metrics(config: Config) -> list[str]:
    """Return names for those that a scorer of one's own will report, which nobody knows yet; none without a scorer.

    Raises:
        ValueError: there is no such scorer.
    """
    return [f"eval/score/NAME of {_scorer(config.scorer).__name__}"] if config.scorer else []


def _scorer(name: str) -> Callable[[Config, Bench], Score]:
    """Return the function that makes a scorer: (configuration, bench) -> (params, step) -> numbers by name."""
    return named.find("config.scorer", name, {}, first="config")


def _from_scorer(config: Config, bench: Bench, views: Views, frozen: Frozen) -> Measure:
    """Return (step, state) -> the numbers of a scorer of one's own, as `score/name`."""
    score, best = _scorer(config.scorer)(config, bench), config.best_metric.removeprefix("-")

    def measure(n: int, state: State) -> dict[str, float]:
        found = {f"score/{name}": float(value) for name, value in score(views.policy(state.params, frozen), n).items()}
        if best.startswith("eval/score/") and best.removeprefix("eval/") not in found:  # before the first step
            raise wording.unknown("config.best_metric", best, [f"eval/{name}" for name in found])
        return found

    return measure


def model_inputs(
    bench: Bench, objective: Objective, views: Views, scan: Shapes, frozen: Frozen
) -> Callable[[State, Batch], Inputs]:
    """Return (state, batch) -> what an objective may ask for of the batch, on every device, still on its way.

    Args:
        bench: devices and model.
        objective: what it asks for beside log-probs is computed, too.
        views: the policy and the reference of a state.
        scan: sizes of the batches.
        frozen: weights beside the state.
    """
    requested = needs.beside_log_probs(objective.needs)
    ref_model = views.reference_model or bench.model
    with_requested = scores.scorer(bench.model, scan, bench.grid, requested, ref_model if requested else None)
    plain = scores.scorer(bench.model, scan, bench.grid) if requested else with_requested
    ref_plain = plain if ref_model is bench.model else scores.scorer(ref_model, scan, bench.grid)

    def inputs(state: State, batch: Batch) -> Inputs:
        ref_params, params, ref = views.reference(state, frozen), views.policy(state.params, frozen), batch.ref
        policy, others = with_requested(params, batch, ref_params)
        if ref is None and ref_params is not None:
            ref = ref_plain(ref_params, batch, None)[0]
        if ref is not None and requested:  # by the reference's program: equal weights give equal numbers, bit for bit
            policy = plain(readers.without(params), batch, None)[0]
        return {"policy": policy, **others, **step.columns(batch), "ref": ref}

    return inputs


def evaluation(
    objective: Objective,
    batches: Callable[[], Iterable[Batch]],
    key: Key,
    sources: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Callable[[Callable[[Batch], Inputs], Any], dict[str, float]]:
    """Return (inputs, objective state) -> metrics on a whole part.

    Args:
        objective: the loss of one example.
        batches: gives every example of the part exactly once, on the devices.
        key: for what samples; the same at every evaluation, so that they compare.
        sources: of a mixture, name of a source -> the numbers of its examples.

    `inputs` maps a batch to what `step.on_examples` takes, on every device. The metrics are `loss` and the objective's
    own, and `source/NAME/...`, the means of each over the examples of a source.
    """
    on_whole, on_each = objective_step(objective), examples_step(objective)

    def evaluate(inputs: Callable[[Batch], Inputs], state: Any) -> dict[str, float]:
        given = whole(inputs, batches()) | {"state": state}
        loss, metrics = on_whole(given, key)
        found = {name: float(value) for name, value in {"loss": loss, **metrics}.items()}
        every = jax.tree.map(np.asarray, on_each(given, key)) if sources else {}
        means = {
            f"source/{source}/{name}": float(np.mean(values[indices], dtype=np.float64))
            for source, indices in sources.items()
            for name, values in every.items()
        }
        return found | means

    return evaluate


def whole(inputs: Callable[[Batch], Inputs], batches: Iterable[Batch]) -> Inputs:
    """Return what an objective may ask for of a whole part, in the order of the data, on the host."""
    parts = []
    for index, values in grid.gathered((batch.index, inputs(batch)) for batch in batches):
        parts.append(jax.tree.map(lambda x, real=index >= 0: x[real], (index, values)))
    index, found = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    order = np.argsort(index)
    return jax.tree.map(lambda x: x[order], found)


def of_examples(objective: Objective, inputs: Inputs, key: Key) -> dict[str, np.ndarray]:
    """Return the loss and the metrics of every example by name, [N] each.

    Args:
        objective: the loss of one example.
        inputs: of the whole part, as `whole` has them, and "state".
        key: for what samples.
    """
    return {name: np.asarray(values) for name, values in examples_step(objective)(inputs, key).items()}


def examples_step(objective: Objective) -> Callable[[Inputs, Key], step.Metrics]:
    """Return the jitted (inputs, key) -> loss and metrics of every example; inputs as `step.on_examples`."""

    @jax.jit
    def objective_of_examples(inputs: Inputs, key: Key) -> step.Metrics:
        losses, metrics, _ = step.on_examples(objective, inputs, key)
        return {"loss": losses, **metrics}

    return objective_of_examples


def objective_step(objective: Objective) -> Callable[[Inputs, Key], tuple[Any, step.Metrics]]:
    """Return the jitted (inputs, key) -> (mean loss, mean metrics) of given log-probs; inputs as `step.on_examples`."""

    @jax.jit
    def objective_step(inputs: Inputs, key: Key) -> tuple[Any, step.Metrics]:
        losses, metrics, _ = step.on_examples(objective, inputs, key)
        return jnp.mean(losses), jax.tree.map(jnp.mean, metrics)

    return objective_step


def comparison(
    bench: Bench, method: Method, views: Views, scan: Shapes, frozen: Frozen, part: Part
) -> Callable[[State], str]:
    """Return state -> a line that says how far policy and reference are apart on the first batch in order."""
    inputs = model_inputs(bench, method.objective, views, scan, frozen)

    def compare(state: State) -> str:
        batch = next(columns.batches(bench.grid, part, scan, data.scan_order(part.examples, scan)[:1]))
        values = inputs(state, batch)
        return difference(values["policy"], values["ref"])

    return compare


def difference(policy: Logps, ref: Logps) -> str:
    """Say how far the policy is from the reference before the first step: each margin should be exactly 0.

    Args:
        policy: [B, K, T] log-probs of the first batch.
        ref: the same under the reference.
    """
    difference = np.where(np.asarray(policy.other) > ABSENT, np.asarray(policy.token) - np.asarray(ref.token), 0.0)
    ratio = difference.sum(-1)
    margin = ratio[:, 0] - ratio[:, 1] if ratio.shape[1] > 1 else ratio[:, 0]
    largest = float(np.abs(margin).max())
    if largest == 0.0:
        return "step 0: policy == reference, every margin of the first batch is exactly 0"
    if largest < 1e-3:
        return f"step 0: policy == reference up to rounding, largest |margin| {largest:.1e} nats (0 expected)"
    return f"step 0: policy != reference, largest |margin| {largest:.3g} nats, mean {float(margin.mean()):+.3g}"

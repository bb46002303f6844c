"""One optimiser step on a global batch, in three lines of thought.

(1) the log-probs of the whole batch; (2) the objective and its gradient *on those [B, K, T] numbers*, which is a tiny
computation on the global batch; (3) the pull-back of that gradient through the model. With one micro-batch this is a
single value-and-gradient. With several, an objective that couples examples (a batch statistic, a sort) runs (1)
without gradient over all micro-batches, (2) once, (3) per micro-batch; one that does not couple them goes through the
model once per micro-batch. Either way accumulation changes memory and no number.

Knows a model and an objective only as functions; knows no configuration.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from slpojax.base import Array, Batch, Key, Logps, Model, Params, Rows, Scored, Shapes, State
from slpojax.logps import log_odds_function, place
from slpojax.objectives import Objective

Metrics = dict[str, Array]
# (log-odds of some rows, their slots, the batch, ref, objective state, key) -> (loss, (metrics, new objective state)).
_LossOfOdds = Callable[..., tuple[Array, tuple[Metrics, Any]]]


def on_examples(
    objective: Objective, policy: Logps, ref: Logps | None, score: Array, state: Any, key: Key
) -> tuple[Array, Metrics, Any]:
    """Apply an objective, a function of one example, to every example of the global batch.

    Args:
        objective: see `slpojax.objectives`.
        policy: [B, K, T] log-probs under the policy.
        ref: the same under the reference, or None where the objective does not ask for it.
        score: [B, K] scores of the candidates.
        state: the objective's running statistics, or None.
        key: split over the examples for an objective that samples.

    Returns:
        The losses [B], the metrics [B] each, and the new state.
    """
    given = {"policy": policy, "ref": ref, "score": score, "key": jax.random.split(key, score.shape[0]), "state": state}
    arguments = {name: given[name] for name in objective.needs}
    axes = {name: None if name == "state" else 0 for name in arguments}

    def one(arguments: dict[str, Any]) -> tuple[Array, Metrics, Any]:
        result = objective.function(**arguments)
        return (*result, state)[:3] if "state" not in arguments else result

    # What an objective returns as state rests on statistics of the whole batch, so it is the same for every example.
    out_axes = (0, 0, None)
    return jax.vmap(one, in_axes=(axes,), out_axes=out_axes, axis_name="batch", axis_size=score.shape[0])(arguments)


def couples_examples(objective: Objective, shapes: Shapes) -> bool:
    """Tell whether the objective's loss of one example depends on the others: whether it uses the axis "batch"."""
    pair = (shapes.candidates, shapes.response)
    logps = Logps(jnp.zeros(pair), jnp.zeros(pair), jnp.ones(pair[:1], jnp.int32))
    given = {
        "policy": logps,
        "ref": logps,
        "score": jnp.zeros(pair[:1]),
        "key": jax.random.key(0),
        "state": objective.state,
    }
    try:
        jax.eval_shape(
            lambda arguments: objective.function(**arguments), {name: given[name] for name in objective.needs}
        )
    except NameError as error:  # JAX's error for a named axis that nobody has bound
        if "batch" in str(error):
            return True
        raise
    return False


def make_train_step(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    shapes: Shapes,
    *,
    accumulate: int,
    batch_devices: int,
    everywhere: jax.sharding.Sharding,
    state_sharding: Any,
) -> Callable[[State, Params | None, Batch], tuple[State, Metrics]]:
    """Return the jitted (state, ref_params, batch) -> (state, metrics); `state` is donated.

    Args:
        model: the policy's, and the reference's where `ref_params` is given.
        objective: see `slpojax.objectives`.
        optimizer: see `slpojax.optim`.
        shapes: the batch's sizes.
        accumulate: micro-batches; divides the rows.
        batch_devices: devices over which the rows are split.
        everywhere: the sharding of what every device holds.
        state_sharding: the sharding of every leaf of the state.

    The metrics are float32 scalars: `loss`, `grad_norm` (before clipping) and the objective's own, each the mean over
    the global batch. With `batch.ref` the reference's log-probs are taken from there, and `ref_params` is None.
    """
    log_odds = log_odds_function(model, shapes, rows_per_device=shapes.rows // accumulate // batch_devices)
    coupled = objective.state is not None or couples_examples(objective, shapes)
    mean_loss = _mean_loss(objective, shapes, everywhere)

    def reference(ref_params: Params | None, batch: Batch) -> Logps | None:
        if batch.ref is not None or ref_params is None:
            return batch.ref
        odds = _over_micro_batches(lambda x: log_odds(ref_params, *x), (batch.rows, batch.scored), accumulate)
        return place(jax.lax.with_sharding_constraint(odds, everywhere), batch.scored, batch.length, shapes.response)

    def gradient(
        params: Params, batch: Batch, ref: Logps | None, state: Any, key: Key
    ) -> tuple[Array, Metrics, Any, Any]:
        micro = (batch.rows, batch.scored)
        if accumulate == 1:
            (loss, (metrics, state)), grads = jax.value_and_grad(
                lambda params: mean_loss(log_odds(params, *micro), batch.scored, batch, ref, state, key), has_aux=True
            )(params)
            return loss, metrics, state, grads

        def pull_back(x: tuple[Rows, Scored, Array]) -> Params:
            return jax.vjp(lambda params: log_odds(params, x[0], x[1]), params)[1](x[2])[0]

        def loss_and_gradient(x: tuple[Rows, Scored]) -> Any:
            return jax.value_and_grad(
                lambda params: mean_loss(log_odds(params, *x), x[1], batch, ref, state, key), has_aux=True
            )(params)

        if coupled:
            odds = _over_micro_batches(lambda x: log_odds(params, *x), micro, accumulate)
            (loss, (metrics, state)), pull = jax.value_and_grad(mean_loss, has_aux=True)(
                odds, batch.scored, batch, ref, state, key
            )
            return loss, metrics, state, _sum_micro_batches(pull_back, (*micro, pull), accumulate)
        (loss, (metrics, _)), grads = _sum_micro_batches(loss_and_gradient, micro, accumulate)
        return loss, metrics, state, grads

    def step(state: State, ref_params: Params | None, batch: Batch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        ref = reference(ref_params, batch)
        loss, metrics, objective_state, grads = gradient(state.params, batch, ref, state.objective, key)
        updates, opt_state = optimizer.update(grads, state.optimizer, state.params)
        new = State(state.step + 1, optax.apply_updates(state.params, updates), opt_state, objective_state, state.key)
        return new, {"loss": loss, "grad_norm": optax.tree.norm(grads), **metrics}

    return jax.jit(step, donate_argnums=0, out_shardings=(state_sharding, everywhere))


def make_objective_step(objective: Objective) -> Callable[..., tuple[Array, Metrics]]:
    """Return the jitted (policy, ref, score, state, key) -> (mean loss, mean metrics) on given log-probs."""

    @jax.jit
    def evaluate(policy: Logps, ref: Logps | None, score: Array, state: Any, key: Key) -> tuple[Array, Metrics]:
        losses, metrics, _ = on_examples(objective, policy, ref, score, state, key)
        return jnp.mean(losses), jax.tree.map(jnp.mean, metrics)

    return evaluate


def _mean_loss(objective: Objective, shapes: Shapes, everywhere: jax.sharding.Sharding) -> _LossOfOdds:
    def mean_loss(
        odds: Array, scored: Scored, batch: Batch, ref: Logps | None, state: Any, key: Key
    ) -> tuple[Array, tuple[Metrics, Any]]:
        # A micro-batch holds whole examples; those of the other micro-batches get no length here and count as zero.
        examples = scored.slot // (shapes.candidates * shapes.response)
        here = jnp.zeros(shapes.examples, bool).at[examples.reshape(-1)].set(True, mode="drop")
        length = jnp.where(here[:, None], batch.length, 0)
        odds = jax.lax.with_sharding_constraint(odds, everywhere)
        policy = place(odds, scored, length, shapes.response)
        losses, metrics, state = on_examples(objective, policy, ref, batch.score, state, key)

        def mean(x: Array) -> Array:
            return jnp.sum(jnp.where(here, x, 0.0)) / shapes.examples

        return mean(losses), (jax.tree.map(mean, metrics), state)

    return mean_loss


def _micro_batches(x: Any, count: int) -> Any:
    """[R, ...] -> [count, R / count, ...], row i to micro-batch i mod count, so that no row changes its device."""
    return jax.tree.map(lambda a: jnp.moveaxis(a.reshape(a.shape[0] // count, count, *a.shape[1:]), 1, 0), x)


def _over_micro_batches(function: Callable[[Any], Array], x: Any, count: int) -> Array:
    """Apply a function to each micro-batch in turn and put its rows [R / count, ...] back in order."""
    if count == 1:
        return function(x)
    out = jnp.moveaxis(jax.lax.map(function, _micro_batches(x, count)), 0, 1)
    return out.reshape(out.shape[0] * count, *out.shape[2:])


def _sum_micro_batches(function: Callable[[Any], Any], x: Any, count: int) -> Any:
    """Sum what a function returns for each micro-batch, one at a time."""
    micro = _micro_batches(x, count)
    zero = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(function, jax.tree.map(lambda a: a[0], micro))
    )
    total, _ = jax.lax.scan(lambda total, x: (jax.tree.map(jnp.add, total, function(x)), None), zero, micro)
    return total

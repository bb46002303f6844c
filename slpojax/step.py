"""One optimiser step on a global batch, in three lines of thought.

(1) the log-probs of the whole batch; (2) the objective and its gradient *on those [B, K, T] numbers*, which is a tiny
computation on the global batch; (3) the pull-back of that gradient through the model. With one micro-batch this is a
single value-and-gradient. With several, an objective that couples examples (a batch statistic, a sort) runs (1)
without gradient over all micro-batches, (2) once, (3) per micro-batch; one that does not couple them goes through the
model once per micro-batch. Either way accumulation changes memory and no number.

A selector picks among the candidates before the objective sees them. Where scoring all of them without gradient and
training on the picked is cheaper, `make_picks` does the first and the step then reads batches of the picked alone; the
numbers are the same.

Knows a model, an objective and a selector only as functions; knows no configuration.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from slpojax import beside, needs, selectors
from slpojax.base import Array, Batch, Int, Key, Logps, Model, Params, Rows, Scored, Shapes, State
from slpojax.logps import Head, head_function, place
from slpojax.objectives import Objective, blank
from slpojax.selectors import Selector

Metrics = dict[str, Array]
_PER_CANDIDATE = frozenset(needs.where(of="candidate"))

# What objectives ask for, by name, with a leading axis of examples (but for the state).
Given = dict[str, Any]


class Moving(NamedTuple):
    """A reference that follows the policy: every `every` steps it becomes mix * policy + (1 - mix) * reference.

    Reference:
        Alexey Gorbatovski, Boris Shaposhnikov, Alexey Malakhov, Nikita Surnachev, Yaroslav Aksenov, Ian Maksimov,
        Nikita Balagansky, Daniil Gavrilov, Learn Your Reference Model for Real Good Alignment, 2024, arXiv:2404.09656:
        the soft update is mix < 1, the hard one mix = 1.
    """

    every: int
    mix: float


def columns(batch: Batch) -> Given:
    """Return what a batch itself holds of what objectives ask for."""
    return needs.columns(batch)


def on_examples(
    objective: Objective, given: Given, key: Key, *, selector: Selector | None = None
) -> tuple[Array, Metrics, Any]:
    """Apply an objective, a function of one example, to every example of the global batch.

    Args:
        objective: see `slpojax.objectives`.
        given: what it may ask for, by name: "policy", "ref", "previous" ([B, K, T] log-probs), "prompt" ([B, P]),
            "score" [B, K], "label" and "weight" [B], those of the head and of readers [B, K, T], "state"; what
            nobody asks for may be missing or None.
        key: split over the examples.
        selector: picks the candidates that the objective sees, without gradient; None for all.

    Returns:
        The losses [B], the metrics [B] each, those of the selector among them, and the new state.
    """
    given = {"ref": None, "probability": given["score"], **given}
    count = given["score"].shape[0]
    keys = jax.vmap(jax.random.split)(jax.random.split(key, count))  # one for the selector, one for the objective
    asked = objective.needs | (selector.needs | {"policy", "ref"} if selector else frozenset())
    arguments = {name: given[name] for name in asked - {"key"}} | {"keys": keys}
    axes = {name: None if name == "state" else 0 for name in arguments}

    def one(arguments: Given) -> tuple[Array, Metrics, Any]:
        keys = arguments["keys"]
        told: Metrics = {}
        if selector:
            candidates, told = selectors.choose(selector, arguments | {"key": keys[0]})
            arguments |= selectors.take({name: arguments[name] for name in asked & _PER_CANDIDATE}, candidates)
        result = objective.function(**{name: (arguments | {"key": keys[1]})[name] for name in objective.needs})
        loss, metrics, *state = result if "state" in objective.needs else (*result, given.get("state"))
        return loss, metrics | told, state[0]

    # What an objective returns as state rests on statistics of the whole batch, so it is the same for every example.
    out_axes = (0, 0, None)
    return jax.vmap(one, in_axes=(axes,), out_axes=out_axes, axis_name="batch", axis_size=count)(arguments)


def couples_examples(objective: Objective, shapes: Shapes) -> bool:
    """Tell whether the objective's loss of one example depends on the others: whether it uses the axis "batch"."""
    arguments = blank(objective, shapes.candidates, shapes.response)
    try:
        jax.eval_shape(lambda arguments: objective.function(**arguments), arguments)
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
    selector: Selector | None = None,
    moving: Moving | None = None,
) -> Callable[[State, Params | None, Batch], tuple[State, Metrics]]:
    """Return the jitted (state, ref_params, batch) -> (state, metrics); `state` is donated.

    Args:
        model: the policy's, and the reference's where `ref_params` is given.
        objective: see `slpojax.objectives`.
        optimizer: see `slpojax.optim`.
        shapes: the batch's sizes; with P where the objective asks for the prompts' log-probs.
        accumulate: micro-batches; divides the rows.
        batch_devices: devices over which the rows are split.
        everywhere: the sharding of what every device holds.
        state_sharding: the sharding of every leaf of the state.
        selector: picks among the candidates of the batch; None where the objective sees them all.
        moving: how `State.reference`, which then takes the place of `ref_params`, follows the policy.

    The metrics are float32 scalars: `loss`, `grad_norm` (before clipping), the objective's own and the selector's, each
    the mean over the global batch. With `batch.ref` the reference's log-probs are taken from there, and `ref_params` is
    None, unless the objective asks for "kl", which takes its weights.
    """
    wanted = sorted(objective.needs & set(needs.of_source("head", "reader")))
    rows_per_device = shapes.rows // accumulate // batch_devices
    numbers = head_function(model, shapes, rows_per_device=rows_per_device, wanted=wanted)
    coupled = objective.state is not None or couples_examples(objective, shapes)
    reference = _reference(model, shapes, rows_per_device, accumulate, everywhere)

    def gradient(
        params: Params, ref_params: Params | None, batch: Batch, ref: Logps | None, state: Any, key: Key
    ) -> tuple[Array, Metrics, Any, Any]:
        micro = (batch.rows, batch.scored)

        def mean_loss(head: Head, scored: Scored) -> tuple[Array, tuple[Metrics, Any]]:
            head = jax.lax.with_sharding_constraint(head, everywhere)
            return _mean_loss(objective, selector, shapes, head, scored, batch._replace(ref=ref), state, key)

        def loss_of(params: Params, x: tuple[Rows, Scored]) -> tuple[Array, tuple[Metrics, Any]]:
            return mean_loss(numbers(params, *x, ref_params), x[1])

        def pulled(params: Params, x: tuple[Rows, Scored, Head]) -> tuple[Array, None]:
            return optax.tree.vdot(x[2], numbers(params, *x[:2], ref_params)), None  # its gradient is the pull-back

        if accumulate == 1:
            (loss, (metrics, state)), grads = jax.value_and_grad(loss_of, has_aux=True)(params, micro)
            return loss, metrics, state, grads
        if coupled:
            head = _over_micro_batches(lambda x: numbers(params, *x, ref_params), micro, accumulate)
            (loss, (metrics, state)), pull = jax.value_and_grad(mean_loss, has_aux=True)(head, batch.scored)
            return loss, metrics, state, _sum_gradients(pulled, params, (*micro, pull), accumulate)[1]
        (loss, (metrics, _)), grads = _sum_gradients(loss_of, params, micro, accumulate)
        return loss, metrics, state, grads

    def step(state: State, ref_params: Params | None, batch: Batch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        ref_params = state.reference if moving else ref_params
        ref = reference(ref_params, batch) if "ref" in objective.needs or selector else None
        loss, metrics, objective_state, grads = gradient(state.params, ref_params, batch, ref, state.objective, key)
        updates, opt_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        moved = _move(moving, state.reference, params, state.step + 1) if moving else state.reference
        new = State(state.step + 1, params, opt_state, objective_state, state.key, moved)
        return new, {"loss": loss, "grad_norm": optax.tree.norm(grads), **metrics}

    return jax.jit(step, donate_argnums=0, out_shardings=(state_sharding, everywhere))


def make_picks(
    model: Model,
    selector: Selector,
    shapes: Shapes,
    *,
    batch_devices: int,
    everywhere: jax.sharding.Sharding,
) -> Callable[[State, Params | None, Batch], tuple[Int[Array, "B picked"], Metrics]]:
    """Return the jitted (state, ref_params, batch of all candidates) -> (what the next step trains on, metrics).

    Candidate 0 comes first. The keys are those of `make_train_step`, so that a step with the selector picks, and
    reports, the same.
    """
    rows_per_device = shapes.rows // batch_devices
    numbers = head_function(model, shapes, rows_per_device=rows_per_device)
    reference = _reference(model, shapes, rows_per_device, 1, everywhere)

    def picks(state: State, ref_params: Params | None, batch: Batch) -> tuple[Int[Array, "B picked"], Metrics]:
        head = jax.lax.with_sharding_constraint(numbers(state.params, batch.rows, batch.scored), everywhere)
        policy, _ = place(head, batch.scored, batch.length, shapes)
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), shapes.examples)
        given = {"policy": policy, "ref": reference(state.reference or ref_params, batch), "score": batch.score}
        given["key"] = jax.vmap(lambda key: jax.random.split(key)[0])(keys)
        picked, metrics = jax.vmap(lambda given: selectors.choose(selector, given))(given)
        return picked, jax.tree.map(jnp.mean, metrics)

    return jax.jit(picks, out_shardings=everywhere)


def make_objective_step(objective: Objective) -> Callable[[Given, Key], tuple[Array, Metrics]]:
    """Return the jitted (given, key) -> (mean loss, mean metrics) on given log-probs; see `on_examples`."""

    @jax.jit
    def objective_step(given: Given, key: Key) -> tuple[Array, Metrics]:
        losses, metrics, _ = on_examples(objective, given, key)
        return jnp.mean(losses), jax.tree.map(jnp.mean, metrics)

    return objective_step


def _reference(
    model: Model, shapes: Shapes, rows_per_device: int, accumulate: int, everywhere: jax.sharding.Sharding
) -> Callable[[Params | None, Batch], Logps | None]:
    """Return (ref_params, batch) -> the reference's log-probs, those of the batch if it has them."""
    numbers = head_function(model, shapes, rows_per_device=rows_per_device)

    def reference(ref_params: Params | None, batch: Batch) -> Logps | None:
        if batch.ref is not None or ref_params is None:
            return batch.ref
        head = _over_micro_batches(lambda x: numbers(ref_params, *x), (batch.rows, batch.scored), accumulate)
        head = jax.lax.with_sharding_constraint(head, everywhere)
        return place(head, batch.scored, batch.length, shapes)[0]

    return reference


def _mean_loss(
    objective: Objective,
    selector: Selector | None,
    shapes: Shapes,
    head: Head,
    scored: Scored,
    batch: Batch,
    state: Any,
    key: Key,
) -> tuple[Array, tuple[Metrics, Any]]:
    # A micro-batch holds whole examples; those of the other micro-batches get no length here and count as zero. The
    # slots of prompts lie behind the last example's.
    examples = scored.slot // (shapes.candidates * shapes.response)
    here = jnp.zeros(shapes.examples, bool).at[examples.reshape(-1)].set(True, mode="drop")
    policy, distribution = place(head, scored, jnp.where(here[:, None], batch.length, 0), shapes)
    given = {"policy": policy, **distribution, **columns(batch), "state": state}
    losses, metrics, state = on_examples(objective, given, key, selector=selector)

    def mean(x: Array) -> Array:
        return jnp.sum(jnp.where(here, x, 0.0)) / shapes.examples

    return mean(losses), (jax.tree.map(mean, metrics), state)


def _move(moving: Moving, reference: Params, params: Params, step: Array) -> Params:
    return jax.lax.cond(
        step % moving.every == 0,
        lambda: jax.tree.map(lambda r, p: moving.mix * p + (1 - moving.mix) * r, reference, beside.without(params)),
        lambda: reference,
    )


def _micro_batches(x: Any, count: int, groups: int) -> Any:
    """[R, ...] -> [count, R / count, ...], group g to micro-batch g mod count, so that no row changes its device."""

    def split(a: Array) -> Array:
        of_groups = a.reshape(groups // count, count, -1, *a.shape[1:])
        return jnp.moveaxis(of_groups, 1, 0).reshape(count, -1, *a.shape[1:])

    return jax.tree.map(split, x)


def _over_micro_batches(function: Callable[[Any], Head], x: tuple[Rows, Scored], count: int) -> Head:
    """Apply a function to each micro-batch in turn and put its groups [G / count, ...] back in order."""
    if count == 1:
        return function(x)
    out = jax.lax.map(function, _micro_batches(x, count, x[1].slot.shape[0]))
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(a.shape[1] * count, *a.shape[2:]), out)


def _sum_gradients(
    function: Callable[[Params, Any], tuple[Array, Any]],
    params: Params,
    x: tuple[Rows, Scored, *tuple[Head, ...]],
    count: int,
) -> tuple[tuple[Array, Any], Params]:
    """Sum a function's value, what it returns beside it, and its gradient over the micro-batches, one at a time.

    A backward pass adds what it finds to the sum in place, layer by layer: no micro-batch has a gradient of its own,
    which would be as large as the parameters once more.
    """
    total = jax.tree.map(lambda p: jax.new_ref(jnp.zeros_like(p)), params)

    def one(_: None, x: Any) -> tuple[None, tuple[Array, Any]]:
        pull: Any  # of a type that JAX does not tell
        value, pull, beside_it = jax.vjp(lambda params: function(params, x), params, has_aux=True)
        pull.with_refs(total)(jnp.ones_like(value))
        return None, (value, beside_it)

    _, values = jax.lax.scan(one, None, _micro_batches(x, count, x[1].slot.shape[0]))
    return jax.tree.map(lambda a: jnp.sum(a, axis=0), values), jax.tree.map(lambda ref: ref[...], total)

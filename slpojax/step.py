"""One optimiser step on a global batch, in three lines of thought.

(1) the log-probs of the whole batch; (2) the objective and its gradient *on those [B, K, T] numbers*, which is a tiny
computation on the global batch; (3) the pull-back of that gradient through the model. With one micro-batch this is a
single value-and-gradient. With several, an objective that couples examples (a batch statistic, a sort) runs (1)
without gradient over all micro-batches, (2) once, (3) per micro-batch; one that does not couple them goes through the
model once per micro-batch. Either way accumulation changes memory and no number.

A selector picks among the candidates before the objective sees them. Where scoring all of them without gradient and
training on the picked is cheaper, `picks` does the first and the update then reads batches of the picked alone; the
numbers are the same.

Everything here is pure: who runs it compiles it, donates its state, or maps it over seeds, rates and hyperparameters.
Knows a model, an objective and a selector only as functions; knows no configuration.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from slpojax import following, needs, selectors, trained
from slpojax.base import EACH, Array, Batch, Frozen, Int, Key, Logps, Model, Params, Rows, Scored, Shapes, State
from slpojax.grid import Grid, constrain, sum_over_data
from slpojax.head import TokenScores
from slpojax.objectives import Objective, blank
from slpojax.scores import place, token_scorer
from slpojax.selectors import Selector

Metrics = dict[str, Array]
# What objectives and selectors ask for, by name, with a leading axis of examples (but for the state).
Inputs = dict[str, Any]


class Method(NamedTuple):
    """What is trained by.

    Attributes:
        objective: the loss of one example.
        selector: picks among the candidates before the objective sees them; None where it sees them all.
        moving: how the reference follows the policy; None where it stays.
    """

    objective: Objective
    selector: Selector | None = None
    moving: following.Rule | None = None

    @property
    def needs(self) -> frozenset[str]:
        """The names of all that objective and selector ask for."""
        return self.objective.needs | (self.selector.needs if self.selector else frozenset())

    @property
    def asked(self) -> dict[str, str]:
        """Who asks for what: the name of a need -> "objective ..." or "selector ..."."""
        of_selector = dict.fromkeys(self.selector.needs, f"selector {self.selector.name}") if self.selector else {}
        return of_selector | dict.fromkeys(self.objective.needs, f"objective {self.objective.name}")


class Views(NamedTuple):
    """The models that a step meets, as functions of what is trained and what is frozen.

    Attributes:
        policy: (trained parameters, frozen) -> the policy's parameters, those of readers among them. The gradient flows
            through it.
        reference: (state, frozen) -> the reference's parameters, or None where its log-probs come with the batch.
        reference_model: what these are parameters of; None where the reference is a model like the policy.
    """

    policy: Callable[[Params, Frozen], Params]
    reference: Callable[[State, Frozen], Params | None]
    reference_model: Model | None = None


# All of the policy's weights are trained; the reference stands among the frozen, or in the state where it moves.
WHOLE = Views(
    lambda params, frozen: params, lambda state, frozen: following.parameters(state.reference) or frozen.reference
)


def views_of(plan: trained.Plan) -> Views:
    """Return the views of a policy of which a plan says what is trained; a reference that moves is trained so, too."""
    if plan.all:
        return WHOLE

    def reference(state: State, frozen: Frozen) -> Params | None:
        moved = following.parameters(state.reference)
        return trained.join(plan, frozen.base, moved) if moved else frozen.reference

    return Views(lambda params, frozen: trained.join(plan, frozen.base, params), reference)


class Hyper(NamedTuple):
    """Hyperparameters that a step takes as arrays, so that steps that differ in them are one program.

    Attributes:
        learning_rate: the peak; None for the optimiser's own.
        objective: some of the objective's hyperparameters, by name; the others are those that it was built with. A
            selector that follows one of them gets it, too.
        selector: likewise, of the selector's own.
    """

    learning_rate: Array | None = None
    objective: Mapping[str, Array] = {}
    selector: Mapping[str, Array] = {}

    def of(self, selector: Selector) -> dict[str, Array]:
        """Return the hyperparameters of a selector that take the place of those it was built with."""
        followed = {name: self.objective[name] for name in selector.follows if name in self.objective}
        return {**followed, **self.selector}


AS_BUILT = Hyper()


class Context(NamedTuple):
    """What a loss reads beside the parameters that it is differentiated by, and beside its rows.

    Attributes:
        frozen: weights that no step changes.
        reference: the reference's parameters; None where its log-probs come with the batch.
        length: [B, K] of the responses.
        columns: what the global batch holds of what objectives ask for, by name.
        statistics: the objective's running ones.
        key: of the step.
        hyper: hyperparameters that are arrays.
    """

    frozen: Frozen
    reference: Params | None
    length: Array
    columns: Inputs
    statistics: Any
    key: Key
    hyper: Hyper


Update = Callable[..., tuple[State, Metrics]]  # (state, frozen, batch, hyper = AS_BUILT) -> (state, metrics)


def columns(batch: Batch) -> Inputs:
    """Return what a batch itself holds of what objectives ask for."""
    return needs.columns(batch)


def on_examples(
    objective: Objective,
    inputs: Inputs,
    key: Key,
    *,
    selector: Selector | None = None,
    hyper: Hyper = AS_BUILT,
) -> tuple[Array, Metrics, Any]:
    """Apply an objective, a function of one example, to every example of the global batch.

    Args:
        objective: the loss of one example, a function of named arrays.
        inputs: what it may ask for, by name: "policy", "ref", "previous" ([B, K, T] log-probs), "prompt" ([B, P]),
            "score" [B, K], "label" and "weight" [B], those of the head and of readers [B, K, T], "state"; what nobody
            asks for may be missing or None.
        key: split over the examples by their places in the batch; or a key for each, [B].
        selector: picks the candidates that the objective sees, without gradient; None for all.
        hyper: hyperparameters that take the place of those that objective and selector were built with.

    Returns:
        The losses [B], the metrics [B] each, those of the selector among them, and the new state.
    """
    inputs = {"ref": None, "probability": inputs["score"], **inputs}
    count = inputs["score"].shape[0]
    of_example = key if key.ndim else jax.random.split(key, count)
    keys = jax.vmap(jax.random.split)(of_example)  # one for the selector, one for the objective
    names = objective.needs | (selector.needs | {"policy", "ref"} if selector else frozenset())
    arguments = {name: inputs[name] for name in names - {"key"}} | {"keys": keys}
    axes = {name: None if name == "state" else 0 for name in arguments}
    of_candidates = names & set(needs.where(of="candidate"))

    def one(arguments: Inputs) -> tuple[Array, Metrics, Any]:
        keys = arguments["keys"]
        of_selector: Metrics = {}
        if selector:
            candidates, of_selector = selectors.choose(selector, arguments | {"key": keys[0]}, **hyper.of(selector))
            arguments |= selectors.take({name: arguments[name] for name in of_candidates}, candidates)
        asked = {name: (arguments | {"key": keys[1]})[name] for name in objective.needs}
        result = objective.function(**asked, **hyper.objective)
        loss, metrics, *state = result if "state" in objective.needs else (*result, inputs.get("state"))
        return loss, metrics | of_selector, state[0]

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


def update(
    model: Model,
    views: Views,
    method: Method,
    optimizer: optax.GradientTransformationExtraArgs,
    shapes: Shapes,
    grid: Grid,
    *,
    each: bool = False,
) -> Update:
    """Return the pure (state, frozen, batch, hyper) -> (state, metrics): one step.

    Args:
        model: the policy's, and where `views` has no other the reference's.
        views: how policy and reference follow from the state and what is frozen.
        method: objective, selector and how the reference moves.
        optimizer: a rule that takes `learning_rate` as an extra argument where `hyper` has one.
        shapes: the batch's sizes; with P where the objective asks for the prompts' log-probs. A group of rows is what
            one device holds of one micro-batch, so the step has as many micro-batches as a device has groups.
        grid: the devices.
        each: whether the loss and the metrics of every example are among the metrics, `each/NAME`, [B].

    The metrics are float32 scalars: `loss`, `grad_norm` (before clipping), the objective's own and the selector's, each
    the mean over the global batch. With `batch.ref` the reference's log-probs are taken from there.
    """
    objective, accumulate = method.objective, shapes.groups // grid.devices
    ref_model = views.reference_model or model
    score = token_scorer(model, shapes, grid, needs.beside_log_probs(objective.needs), ref_model)
    coupled = objective.state is not None or couples_examples(objective, shapes)
    reference_of = _reference(ref_model, shapes, grid)

    def tokens(params: Params, context: Context, rows: Rows, scored: Scored) -> TokenScores:
        return score(views.policy(params, context.frozen), rows, scored, context.reference)

    def mean_loss(tokens: TokenScores, context: Context, scored: Scored) -> tuple[Array, tuple[Metrics, Any]]:
        return _mean_loss(method, shapes, constrain(tokens, grid.everywhere), context, scored, each)

    def loss_of(params: Params, context: Context, x: tuple[Rows, Scored]) -> tuple[Array, tuple[Metrics, Any]]:
        return mean_loss(tokens(params, context, *x), context, x[1])

    def pulled(params: Params, context: Context, x: tuple[Rows, Scored, TokenScores]) -> tuple[Array, None]:
        return optax.tree.vdot(x[2], tokens(params, context, *x[:2])), None  # its gradient is the pull-back

    def gradient(params: Params, context: Context, x: tuple[Rows, Scored]) -> tuple[Array, Metrics, Any, Any]:
        if accumulate == 1:
            (loss, (metrics, statistics)), grads = jax.value_and_grad(loss_of, has_aux=True)(params, context, x)
            return loss, metrics, statistics, grads
        if coupled:
            scores = _over_micro_batches(lambda x: tokens(params, context, *x), x, accumulate)
            (loss, (metrics, statistics)), pull = jax.value_and_grad(mean_loss, has_aux=True)(scores, context, x[1])
            return loss, metrics, statistics, _sum_gradients(pulled, params, context, (*x, pull), accumulate, grid)[1]
        (loss, (metrics, _)), grads = _sum_gradients(loss_of, params, context, x, accumulate, grid)
        return loss, metrics, context.statistics, grads

    def step(state: State, frozen: Frozen, batch: Batch, hyper: Hyper = AS_BUILT) -> tuple[State, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        ref_params = views.reference(state, frozen)
        if "ref" in method.needs or method.selector:
            batch = batch._replace(ref=reference_of(ref_params, batch))
        context = Context(frozen, ref_params, batch.length, columns(batch), state.objective, key, hyper)
        loss, metrics, statistics, grads = gradient(state.params, context, (batch.rows, batch.scored))
        rate = {} if hyper.learning_rate is None else {"learning_rate": hyper.learning_rate}
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params, **rate)
        params = optax.apply_updates(state.params, updates)
        reference = following.move(method.moving, state.reference, params, state.step + 1)
        new = State(state.step + 1, params, optimizer_state, statistics, state.key, reference)
        return new, {"loss": loss, "grad_norm": optax.tree.norm(grads), **metrics}

    return step


def skipping(update: Update) -> Update:
    """Return an update that leaves the state as it was, but for the step's number, where a step is not finite.

    A step is finite if its loss and the norm of its gradient are. The metric `skipped` is 1 where it is not, else 0.

    Args:
        update: from `update`.
    """

    def step(state: State, frozen: Frozen, batch: Batch, hyper: Hyper = AS_BUILT) -> tuple[State, Metrics]:
        new, metrics = update(state, frozen, batch, hyper)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
        return kept._replace(step=new.step), metrics | {"skipped": jnp.where(finite, 0.0, 1.0)}

    return step


def picks(
    model: Model, views: Views, selector: Selector, shapes: Shapes, grid: Grid
) -> Callable[..., tuple[Int[Array, "B picked"], Metrics]]:
    """Return the pure (state, frozen, batch of all candidates, hyper) -> (what the next step trains on, metrics).

    Candidate 0 comes first. The keys are those of `update`, so that a step with the selector picks, and reports, the
    same.
    """
    score, reference_of = token_scorer(model, shapes, grid), _reference(views.reference_model or model, shapes, grid)

    def pick(
        state: State, frozen: Frozen, batch: Batch, hyper: Hyper = AS_BUILT
    ) -> tuple[Int[Array, "B picked"], Metrics]:
        tokens = score(views.policy(state.params, frozen), batch.rows, batch.scored)
        tokens = constrain(tokens, grid.everywhere)
        policy, _ = place(tokens, batch.scored, batch.length, shapes)
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), shapes.examples)
        inputs = {"policy": policy, "ref": reference_of(views.reference(state, frozen), batch), "score": batch.score}
        inputs["key"] = jax.vmap(lambda key: jax.random.split(key)[0])(keys)
        picked, metrics = jax.vmap(lambda inputs: selectors.choose(selector, inputs, **hyper.of(selector)))(inputs)
        return picked, jax.tree.map(jnp.mean, metrics)

    return pick


def _reference(model: Model, shapes: Shapes, grid: Grid) -> Callable[[Params | None, Batch], Logps | None]:
    """Return (ref_params, batch) -> the reference's log-probs, those of the batch if it has them."""
    score = token_scorer(model, shapes, grid)

    def reference(ref_params: Params | None, batch: Batch) -> Logps | None:
        if batch.ref is not None or ref_params is None:
            return batch.ref
        micro, count = (batch.rows, batch.scored), shapes.groups // grid.devices
        tokens = _over_micro_batches(lambda x: score(ref_params, *x), micro, count)
        tokens = constrain(tokens, grid.everywhere)
        return place(tokens, batch.scored, batch.length, shapes)[0]

    return reference


def _mean_loss(
    method: Method,
    shapes: Shapes,
    tokens: TokenScores,
    context: Context,
    scored: Scored,
    each: bool,
) -> tuple[Array, tuple[Metrics, Any]]:
    """Return the mean loss over the global batch of the examples that are scored here, the metrics and the state."""
    # A micro-batch holds whole examples; those of the other micro-batches get no length here and count as zero. The
    # slots of prompts lie behind the last example's.
    examples = scored.slot // (shapes.candidates * shapes.response)
    present = jnp.zeros(shapes.examples, bool).at[examples.reshape(-1)].set(True, mode="drop")
    policy, others = place(tokens, scored, jnp.where(present[:, None], context.length, 0), shapes)
    inputs = {"policy": policy, **others, **context.columns, "state": context.statistics}
    selector, hyper = method.selector, context.hyper
    losses, metrics, state = on_examples(method.objective, inputs, context.key, selector=selector, hyper=hyper)

    def here(x: Array) -> Array:
        return jnp.where(present, x, 0.0)

    def mean(x: Array) -> Array:
        return jnp.sum(here(x)) / shapes.examples

    of_examples = {f"{EACH}{name}": here(x) for name, x in {"loss": losses, **metrics}.items()} if each else {}
    return mean(losses), (jax.tree.map(mean, metrics) | of_examples, state)


def _micro_batches(x: Any, count: int, groups: int) -> Any:
    """[R, ...] -> [count, R / count, ...], group g to micro-batch g mod count, so that no row changes its device."""

    def split(a: Array) -> Array:
        of_groups = a.reshape(groups // count, count, -1, *a.shape[1:])
        return jnp.moveaxis(of_groups, 1, 0).reshape(count, -1, *a.shape[1:])

    return jax.tree.map(split, x)


def _over_micro_batches(function: Callable[[Any], TokenScores], x: tuple[Rows, Scored], count: int) -> TokenScores:
    """Apply a function to each micro-batch in turn and put its groups [G / count, ...] back in order."""
    if count == 1:
        return function(x)
    out = jax.lax.map(function, _micro_batches(x, count, x[1].slot.shape[0]))
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(a.shape[1] * count, *a.shape[2:]), out)


def _sum_gradients(
    function: Callable[[Params, Context, Any], tuple[Array, Any]],
    params: Params,
    context: Context,
    x: tuple[Rows, Scored, *tuple[TokenScores, ...]],
    count: int,
    grid: Grid,
) -> tuple[tuple[Array, Any], Params]:
    """Sum a function's value, its auxiliary output and its gradient over the micro-batches, one at a time.

    A backward pass adds its gradient to the sum in place, layer by layer: no micro-batch has a gradient of its own,
    which would be as large as the parameters once more. Devices along `data` hold the same parameters, so each adds up
    the gradient of its own rows, and these sums are summed over the devices once, behind the last micro-batch. Along
    `fsdp`, where a device has room for its part alone, every micro-batch's gradient is reduced and scattered.
    """

    def here(whole: tuple[Params, Context], x: Any) -> tuple[tuple[Array, Any], Params]:
        params, context = whole
        total = jax.tree.map(lambda p: jax.new_ref(jnp.zeros_like(p)), params)

        def one(_: None, x: Any) -> tuple[None, tuple[Array, Any]]:
            pull: Any  # of a type that JAX does not tell
            value, pull, auxiliary = jax.vjp(lambda params: function(params, context, x), params, has_aux=True)
            pull.with_refs(total)(jnp.ones_like(value))
            return None, (value, auxiliary)

        _, values = jax.lax.scan(one, None, _micro_batches(x, count, x[1].slot.shape[0]))
        return jax.tree.map(lambda a: jnp.sum(a, axis=0), values), jax.tree.map(lambda ref: ref[...], total)

    return sum_over_data(here, grid)((params, context), x)

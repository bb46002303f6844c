"""What the gradients of a few examples say, as metrics of a training run; see `slpojax.explore`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from slpojax import needs
from slpojax.base import ABSENT, Array, Batch, Frozen, Key, Logps, Model, Params, Shapes
from slpojax.explore.arrays import Outputs, by_model_outputs, by_tokens, safe_radius, safe_radius_pair
from slpojax.explore.parameters import (
    Entanglement,
    entanglement_of,
    forward_function,
    gram,
    pull_back,
    rates_of_change,
    ratio,
)
from slpojax.grid import Grid
from slpojax.numerics import effective_sample_size
from slpojax.objectives import Objective
from slpojax.scores import place
from slpojax.selectors import Selector
from slpojax.sequence import log_ratio, size
from slpojax.step import WHOLE, Inputs, Metrics, Views, on_examples


def make_diagnostics(
    model: Model,
    objective: Objective,
    shapes: Shapes,
    grid: Grid,
    *,
    selector: Selector | None = None,
    forward_model: Model | None = None,
    ref_model: Model | None = None,
    views: Views = WHOLE,
) -> Callable[..., Metrics]:
    """Return the jitted (params, batch, inputs, ref_params, key, frozen) -> diagnostics of a few examples.

    It costs a forward pass and a forward derivative of the batch, and three backward passes for every example; four
    gradients are in memory at a time.

    Args:
        model: the policy's.
        objective: an objective of pairs, of labelled responses or of more candidates.
        shapes: the batch's sizes.
        grid: the devices.
        selector: picks the candidates that the objective sees; None for all.
        forward_model: the same model with attention="dense": on rows of more than `models.attention.SHORT` tokens the
            faster ones have no forward derivative. None where the rows are shorter.
        ref_model: the reference's where `ref_params` is given (for an objective that asks for "kl"); None where it is
            the policy's.
        views: how the policy follows from what is trained, whose gradients these are, and what is frozen.

    `inputs` is what `step.on_examples` takes, by name: "ref", "previous", "score", "label", "weight", "state"; the
    log-probs of the policy are computed here. The diagnostics are means over the examples that have both responses, but
    for the radii, the least of all tokens and pairs. "Step" is one down the gradient of the batch's mean loss,
    normalised: its unit is the norm of the parameters' change, so `diagnostic/grad_norm` times the learning rate is the
    length of an SGD step.

        diagnostic/norm_chosen, diagnostic/norm_rejected    norms of the gradients g_w, g_l of log P(y)
        diagnostic/cosine              of the angle between g_w and g_l
        diagnostic/entanglement        g_w . g_l / min(|g_w|^2, |g_l|^2); from 1 on a step on the pair's margin moves
                                       both responses the same way
        diagnostic/slope_chosen, diagnostic/slope_rejected    d loss / d log p(token) of an example's own loss, the mean
                                       over its tokens; see `Gradient`. With a selector the rejected is candidate 1,
                                       picked or not
        diagnostic/change_chosen, diagnostic/change_rejected    nats per unit of the step
        diagnostic/both_fall, diagnostic/both_rise    share of pairs that the step moves the same way
        diagnostic/own_both_fall       the same for a step on each example's own loss
        diagnostic/safe_radius         pi / Delta_a along the step, the least of all tokens; see `safe_radius`
        diagnostic/safe_radius_pair    that of the logistic loss of the reward margin, for objectives that report one
        diagnostic/grad_norm           of the mean loss of these examples
        diagnostic/effective_sample_size    of the selector's weights, where it has such; else of the weights
                                       exp(beta log P / P_ref) of the candidates behind the first, where there are more
                                       than two, none a copy of another, and a reference; beta is the objective's, or 1

    Raises:
        ValueError: the batch holds one candidate.
    """
    if shapes.candidates < 2:
        raise ValueError("the diagnostics compare two responses; with data.candidates=1 there is one")
    requested = needs.beside_log_probs(objective.needs)

    def diagnose(
        params: Params,
        batch: Batch,
        inputs: Inputs,
        ref_params: Params | None,
        key: Key,
        frozen: Frozen = Frozen(),  # noqa: B008
    ) -> Metrics:
        policy_model, moving_model = (_of_trained(one, views, frozen) for one in (model, forward_model or model))
        forward = forward_function(policy_model, shapes, batch, requested, ref_params, grid, ref_model or model)
        (policy, more), pull = pull_back(forward, params)
        inputs = {"state": objective.state} | inputs | {"policy": policy, **more}
        metrics, _, by_outputs = by_model_outputs(objective, inputs, key, selector)
        lie, grads = _gradients(pull, by_outputs)

        # The step on all of them, as a direction of norm one, and what moves along it.
        norm = optax.tree.norm(grads)
        direction = jax.tree.map(lambda x: -x / jnp.where(norm > 0, norm, 1.0), grads)
        spread, rate = rates_of_change(moving_model, params, direction, shapes, batch, grid)
        moving = _moving(policy, batch, shapes, rate)
        change = jnp.sum(moving.token, axis=-1)[:, :2]
        slope = (jnp.sum(by_tokens(policy, *by_outputs[:2])[0], axis=-1) / size(policy))[:, :2]
        both = jnp.all(jnp.asarray(batch.length)[:, :2] > 0, axis=-1)

        def mean(x: Array) -> Array:
            return jnp.sum(jnp.where(both, x, 0.0)) / jnp.maximum(jnp.sum(both), 1)

        diagnostics = {
            "norm_chosen": mean(lie.chosen),
            "norm_rejected": mean(lie.rejected),
            "cosine": mean(lie.cosine),
            "entanglement": mean(ratio(lie.inner, jnp.minimum(lie.chosen, lie.rejected) ** 2)),
            "slope_chosen": mean(slope[:, 0]),
            "slope_rejected": mean(slope[:, 1]),
            "change_chosen": mean(change[:, 0]),
            "change_rejected": mean(change[:, 1]),
            "both_fall": mean(jnp.all(change < 0, axis=-1)),
            "both_rise": mean(jnp.all(change > 0, axis=-1)),
            "own_both_fall": mean(jnp.all(lie.change[:, 0] < 0, axis=-1)),
            "safe_radius": safe_radius(jnp.max(spread)),
            "grad_norm": norm / shapes.examples,
        }
        if "rewards/margins" in metrics:
            # Rewards are linear in log-probs, so that a finite difference over at most a nat is their derivative.
            largest = jnp.max(jnp.abs(moving.token))
            step = 1 / jnp.where(largest > 0, largest, 1.0)
            moved = Logps(policy.token + step * moving.token, policy.other + step * moving.other, policy.length)
            margins = metrics["rewards/margins"]
            after = on_examples(objective, inputs | {"policy": moved}, key, selector=selector)[1]["rewards/margins"]
            radius = safe_radius_pair(margins, (after - margins) / step)
            diagnostics["safe_radius_pair"] = jnp.min(jnp.where(both, radius, jnp.inf))
        if "selector/effective" in metrics:
            diagnostics["effective_sample_size"] = mean(metrics["selector/effective"])
        elif shapes.candidates > 2 and inputs.get("ref") is not None and "degree" not in requested:
            weights = objective.hyperparameters.get("beta", 1.0) * log_ratio(policy, inputs["ref"])
            weights = jnp.where(jnp.asarray(batch.length) > 0, weights, ABSENT)[:, 1:]
            diagnostics["effective_sample_size"] = mean(effective_sample_size(weights))
        return {f"diagnostic/{name}": value for name, value in diagnostics.items()}

    return jax.jit(diagnose, out_shardings=grid.everywhere)


def _of_trained(model: Model, views: Views, frozen: Frozen) -> Model:
    """Return a model as functions of what is trained."""

    def of(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, *rest: function(views.policy(params, frozen), *rest)

    return model._replace(
        apply=of(model.apply),
        layers=of(model.layers),
        unembed=of(model.unembed),
        score=of(model.score) if model.score else None,
    )


def _gradients(pull: Callable[[Outputs], Params], by_outputs: Outputs) -> tuple[Entanglement, Params]:
    """Return how every example's gradients of log P(chosen), log P(rejected) and its loss lie; the losses' sum's."""
    nothing = jax.tree.map(jnp.zeros_like, by_outputs)
    one = [(nothing[0].at[:, k].set(1.0), *nothing[1:]) for k in (0, 1)]
    products, grads = gram(pull, jax.tree.map(lambda *x: jnp.stack(x, axis=1), *one, by_outputs))
    return entanglement_of(products), grads


def _moving(policy: Logps, batch: Batch, shapes: Shapes, rate: Array) -> Logps:
    """Return the rates of change of the tokens' log-probs from those of their log-odds: p moves, and 1 - p along."""
    _, placed = place({"log_odds": rate, "rate": rate}, batch.scored, batch.length, shapes)
    rates = placed["rate"]  # d log p = (1 - p) d logit, d log(1 - p) = -p d logit
    return Logps(rates * jnp.exp(policy.other), -rates * jnp.exp(policy.token), policy.length)

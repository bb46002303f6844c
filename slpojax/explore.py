r"""The gradient desk: what an objective does to log-probs, what its step does to both responses, how far a step may go.

Knows objectives, log-probs and models as functions; knows no configuration, no data set and no plot. The upper half
works on arrays that anybody may write down (`responses`, `gradient`, `field`, `effective_sample_size`), the lower half
on parameters (`scorer`, `entanglement`, `logit_spread`, `safe_radius`); `make_diagnostics` brings it to a training run.

With g_w and g_l the gradients of log P(chosen) and log P(rejected) with respect to the parameters, a small step on a
loss of the margin moves them by

.. math:: \Delta \log P(y_w) \propto ||g_w||^2 - g_w \cdot g_l, \quad
    \Delta \log P(y_l) \propto g_w \cdot g_l - ||g_l||^2,

so both move the same way as soon as the inner product exceeds one of the squared norms.

Reference:
    Hui Yuan, Yifan Zeng, Yue Wu, Huazheng Wang, Mengdi Wang, Liu Leqi, A Common Pitfall of Margin-based Language Model
    Alignment: Gradient Entanglement, 2024, arXiv:2410.13828.
    Piyush Sao, Ghosts of Softmax: Complex Singularities That Limit Safe Step Sizes in Cross-Entropy, 2026,
    arXiv:2603.13552.
"""

import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from slpojax.base import ABSENT, TOKEN, Array, Batch, Float, Key, Logps, Model, Params, Shapes
from slpojax.grid import Grid, one_device
from slpojax.head import positions_at_once, predictors
from slpojax.numerics import effective_sample_size, log1mexp
from slpojax.objectives import Objective
from slpojax.scores import place, token_scorer
from slpojax.selectors import Selector
from slpojax.sequence import log_ratio, size
from slpojax.step import Inputs, Metrics, on_examples

# params -> the log-probs of a batch, and what else of `TOKEN` is asked for, [B, K, T] each, and the prompts' `Logps`
# [B, P] where the batch scores them.
Scorer: TypeAlias = Callable[[Params], tuple[Logps, dict[str, Any]]]
# (token, other, what else): the real numbers of what a scorer returns; (token, other) of a prompt's.
_Numbers: TypeAlias = tuple[Array, Array, dict[str, Any]]


class Gradient(NamedTuple):
    """The gradient of a loss on given log-probs.

    A batch's loss is the mean of its examples'; this is B times its gradient, which is the example's own where the
    objective does not couple examples.

    Attributes:
        loss: of each example.
        token: d loss / d log p(token), nats per nat; 1 - p moves along. 0 where there is no token.
        odds: d loss / d logit of the token, the other logits fixed: (1 - p) times `token`, finite also for p = 1.
        response: d loss / d log P(y) where the change is spread evenly over the response: the mean of `token`.
    """

    loss: Float[Array, " B"]
    token: Float[Array, "B K T"]
    odds: Float[Array, "B K T"]
    response: Float[Array, "B K"]


class Field(NamedTuple):
    """A loss over the changes of two responses, [X, Y]; `chosen` and `rejected` are d loss / d log P of each.

    Gradient descent moves the chosen by minus `chosen` and the rejected by minus `rejected`: as arrows over the grid,
    `quiver(x, y, -field.chosen.T, -field.rejected.T)`.
    """

    loss: Float[Array, "X Y"]
    chosen: Float[Array, "X Y"]
    rejected: Float[Array, "X Y"]


class Entanglement(NamedTuple):
    """How the gradients of log P(chosen) and log P(rejected) by the parameters lie to each other, per example.

    Attributes:
        chosen: the norm of the chosen's.
        rejected: the norm of the rejected's.
        inner: their inner product.
        cosine: of the angle between them.
        change: for each of the N gradients handed in, d log P(chosen) / dt and d log P(rejected) / dt where the
            parameters move by -dt times that gradient: the first-order change under a step on this example alone.
    """

    chosen: Float[Array, " B"]
    rejected: Float[Array, " B"]
    inner: Float[Array, " B"]
    cosine: Float[Array, " B"]
    change: Float[Array, "B N 2"]


def responses(logp: Array | Sequence[Any], length: Array | Sequence[Any], width: int | None = None) -> Logps:
    """Return responses with given log P(y), spread evenly over their tokens.

    Args:
        logp: log P(y | x) of each, below 0, in nats.
        length: tokens of each; it broadcasts against `logp`, and 0 makes a response absent.
        width: T; the longest length where None.

    Example:
        >>> y = responses([-6.0, -4.0], [3, 2])
        >>> print(y.token)
        [[-2. -2. -2.]
         [-2. -2.  0.]]
    """
    logp = jnp.asarray(logp, jnp.result_type(float))
    lengths = jnp.broadcast_to(jnp.asarray(length, jnp.int32), logp.shape)
    width = int(np.max(np.asarray(length))) if width is None else width
    here = jnp.arange(width).reshape((1,) * logp.ndim + (-1,)) < lengths[..., None]
    token = jnp.broadcast_to((logp / jnp.maximum(lengths, 1))[..., None], here.shape)
    return Logps(jnp.where(here, token, 0.0), jnp.where(here, log1mexp(token), ABSENT), lengths)


def gradient(
    objective: Objective, policy: Logps, ref: Logps | None = None, *, key: Key | None = None, **other: Any
) -> Gradient:
    """Return the gradient of an objective with respect to given log-probs.

    Args:
        objective: see `slpojax.objectives`.
        policy: [B, K, T]; candidate 0 is the preferred one.
        ref: the same responses under the reference.
        key: for an objective that samples.
        **other: what else the objective asks for: `previous`, `prompt` [B, P], `score` [B, K], `label` [B], `weight`
            [B] (1 where it is not given), `state`, and those of `slpojax.base.TOKEN` [B, K, T], which stay as they are
            while the token's log-prob moves.

    Raises:
        ValueError: the objective asks for something that is not there.

    Example:
        >>> from slpojax import objectives
        >>> same = responses([[-3.0, -4.0]], [2, 2])
        >>> print(gradient(objectives.build("dpo.sigmoid", beta=0.1), same, same).response)
        [[-0.05  0.05]]
    """
    given = _given(objective, policy, ref, other)
    key = jax.random.key(0) if key is None else key
    _, losses, (by_token, by_other, _) = _by_numbers(objective, given, key)
    token, odds = _by_tokens(policy, by_token, by_other)
    return Gradient(losses, token, odds, jnp.sum(token, axis=-1) / size(policy))


def field(
    objective: Objective,
    chosen: Float[Array, " X"],
    rejected: Float[Array, " Y"],
    *,
    logp: Sequence[float | int] = (-120.0, -120.0),
    length: Sequence[int] = (60, 60),
    **other: Any,
) -> Field:
    """Return an objective's loss and slopes over the changes of the chosen and of the rejected response.

    Every point is a batch of its own, and the tokens of a response share its change evenly. An objective of pairs sees
    one example. One that asks for labels sees two, the chosen as a desirable and the rejected as an undesirable
    response; their second candidates (KTO's mismatched responses) are the other one under the reference, and the loss
    is the sum of both.

    Args:
        objective: see `slpojax.objectives`.
        chosen: changes of the chosen, log P - log P_ref, in nats.
        rejected: those of the rejected.
        logp: log P_ref of every candidate; from the third on they stay there.
        length: tokens of every candidate.
        **other: what else the objective asks for, see `gradient`.

    Raises:
        ValueError: a change takes a response to probability one or beyond.
    """
    for k, (name, change) in enumerate((("chosen", chosen), ("rejected", rejected))):
        if logp[k] + float(np.max(change)) >= 0:
            raise ValueError(
                f"{name}: a change of {float(np.max(change)):g} nats takes log P = {logp[k]:g} to probability one; "
                "expected changes below the nats that are missing"
            )
    single = "label" in objective.needs
    order = np.array([[0, 1], [1, 0]]) if single else np.arange(len(logp))[None]  # candidates of each example
    still = responses(logp, length)
    ref = jax.tree.map(lambda x: x[order], still)
    other = ({"label": jnp.float32([1, 0])} if single else {}) | other

    def at(x: Array, y: Array) -> Field:
        change = jnp.zeros(len(logp)).at[:2].set(jnp.stack([x, y]))
        moved = responses(jnp.asarray(logp) + change, length, still.token.shape[-1])
        policy = jax.tree.map(lambda x: x[order], moved)
        if single:
            policy = jax.tree.map(lambda p, r: p.at[:, 1].set(r[:, 1]), policy, ref)
        out = gradient(objective, policy, ref if "ref" in objective.needs else None, **other)
        return Field(jnp.sum(out.loss), out.response[0, 0], out.response[1, 0] if single else out.response[0, 1])

    points = jax.vmap(jax.vmap(at, in_axes=(None, 0)), in_axes=(0, None))
    return jax.jit(points)(jnp.asarray(chosen, jnp.result_type(float)), jnp.asarray(rejected, jnp.result_type(float)))


def safe_radius(spread: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""Return how far along a direction the Taylor series of a log-softmax is sure to converge, if logits are linear.

    .. math:: \rho = \pi / \Delta_a, \quad \Delta_a = \max_v a_v - \min_v a_v, \quad a = \nabla z \cdot \text{direction}

    Within it no zero of sum_v exp(z_v + t a_v), complex t included, is met. It is a lower bound, and it says nothing of
    whether the loss falls.

    Args:
        spread: Delta_a, logits per unit of the direction; 0 (nothing moves) gives infinity.
    """
    return math.pi / spread


def safe_radius_pair(margin: Float[Array, "*shape"], rate: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""Return the same for the logistic loss of a margin, where it is exact.

    .. math:: \rho = \sqrt{\delta^2 + \pi^2} / |\Delta_a|

    Args:
        margin: delta, the argument of the logistic function.
        rate: its change per unit of the direction.
    """
    return jnp.hypot(margin, math.pi) / jnp.abs(rate)


def scorer(
    model: Model,
    shapes: Shapes,
    batch: Batch,
    *,
    wanted: Collection[str] = (),
    ref_params: Params | None = None,
    grid: Grid | None = None,
) -> Scorer:
    """Return params -> the log-probs of a batch.

    Args:
        model: whose.
        shapes: the batch's sizes.
        batch: a few examples.
        wanted: what else is asked for, among `slpojax.base.TOKEN`.
        ref_params: the reference's, for "kl".
        grid: the devices; one where None.
    """
    return _forward(model, shapes, batch, wanted, ref_params, grid or one_device())


def entanglement(score: Scorer, params: Params, gradients: Sequence[Float[Array, "B K T"]] = ()) -> Entanglement:
    """Return the inner products of per-example gradients by the parameters; one example is in memory at a time.

    Args:
        score: see `scorer`.
        params: where.
        gradients: N of them, of any losses with respect to the tokens' logits: `Gradient.odds`.
    """
    (logps, distribution), pull = _pull(score, params)
    one = [jnp.zeros_like(logps.token).at[:, k].set(1.0) for k in (0, 1)]
    nothing = jnp.zeros_like(logps.token)
    # A gradient by the logit, which is token - other, counts for one and against the other.
    sides = [(c, nothing) for c in one] + [(jnp.asarray(c), -jnp.asarray(c)) for c in gradients]
    token, other = (jnp.stack(side, axis=1) for side in zip(*sides, strict=True))
    nothing_else = jax.tree.map(lambda x: jnp.zeros((*token.shape[:2], *x.shape[1:])), _real(distribution))
    return _entanglement(_gram(pull, (token, other, nothing_else))[0])


def logit_spread(
    model: Model, params: Params, direction: Params, shapes: Shapes, batch: Batch, *, grid: Grid | None = None
) -> Float[Array, "G S"]:
    """Return Delta_a of every scored token: the spread of the logits' rates of change, from one forward derivative.

    Args:
        model: whose.
        params: where.
        direction: like the parameters; its norm is the unit of what comes out.
        shapes: the batch's sizes.
        batch: a few examples; 0 comes out where its rows have no scored token.
        grid: the devices; one where None.

    On rows of more than `models.attention.SHORT` tokens it takes a model built with attention="dense".
    """
    return _rates(model, params, direction, shapes, batch, grid or one_device())[0]


def make_diagnostics(
    model: Model,
    objective: Objective,
    shapes: Shapes,
    grid: Grid,
    *,
    selector: Selector | None = None,
    forward_model: Model | None = None,
) -> Callable[[Params, Batch, Inputs, Params | None, Key], Metrics]:
    """Return the jitted (params, batch, given, ref_params, key) -> diagnostics of a few examples.

    It costs a forward pass and a forward derivative of the batch, and three backward passes for every example; four
    gradients are in memory at a time.

    Args:
        model: the policy's, and the reference's where `ref_params` is given (for an objective that asks for "kl").
        objective: see `slpojax.objectives`.
        shapes: the batch's sizes.
        grid: the devices.
        selector: picks the candidates that the objective sees; None for all.
        forward_model: the same model with attention="dense": on rows of more than `models.attention.SHORT` tokens the
            faster ones have no forward derivative. None where the rows are shorter.

    `given` is what `step.on_examples` takes, by name: "ref", "previous", "score", "label", "weight", "state"; the
    policy's own numbers are computed here. The diagnostics are means over the examples that have both responses, but
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
    wanted = sorted(objective.needs & set(TOKEN))

    def diagnose(params: Params, batch: Batch, given: Inputs, ref_params: Params | None, key: Key) -> Metrics:
        forward = _forward(model, shapes, batch, wanted, ref_params, grid)
        (policy, distribution), pull = _pull(forward, params)
        given = {"state": objective.state} | given | {"policy": policy, **distribution}
        metrics, _, by_numbers = _by_numbers(objective, given, key, selector)

        # The gradients of every example: of log P(chosen), of log P(rejected), of its own loss.
        nothing = jax.tree.map(jnp.zeros_like, by_numbers)
        one = [(nothing[0].at[:, k].set(1.0), *nothing[1:]) for k in (0, 1)]
        gram, grads = _gram(pull, jax.tree.map(lambda *x: jnp.stack(x, axis=1), *one, by_numbers))
        e = _entanglement(gram)

        # The step on all of them, as a direction of norm one, and what moves along it.
        norm = optax.tree.norm(grads)
        direction = jax.tree.map(lambda x: -x / jnp.where(norm > 0, norm, 1.0), grads)
        spread, rate = _rates(forward_model or model, params, direction, shapes, batch, grid)
        _, placed = place({"log_odds": rate, "rate": rate}, batch.scored, batch.length, shapes)
        token = placed["rate"] * jnp.exp(policy.other)  # d log p = (1 - p) d logit, d log(1 - p) = -p d logit
        other = -placed["rate"] * jnp.exp(policy.token)
        change = jnp.sum(token, axis=-1)[:, :2]
        both = jnp.all(jnp.asarray(batch.length)[:, :2] > 0, axis=-1)
        slope = (jnp.sum(_by_tokens(policy, *by_numbers[:2])[0], axis=-1) / size(policy))[:, :2]

        def mean(x: Array) -> Array:
            return jnp.sum(jnp.where(both, x, 0.0)) / jnp.maximum(jnp.sum(both), 1)

        found = {
            "norm_chosen": mean(e.chosen),
            "norm_rejected": mean(e.rejected),
            "cosine": mean(e.cosine),
            "entanglement": mean(_ratio(e.inner, jnp.minimum(e.chosen, e.rejected) ** 2)),
            "slope_chosen": mean(slope[:, 0]),
            "slope_rejected": mean(slope[:, 1]),
            "change_chosen": mean(change[:, 0]),
            "change_rejected": mean(change[:, 1]),
            "both_fall": mean(jnp.all(change < 0, axis=-1)),
            "both_rise": mean(jnp.all(change > 0, axis=-1)),
            "own_both_fall": mean(jnp.all(e.change[:, 0] < 0, axis=-1)),
            "safe_radius": safe_radius(jnp.max(spread)),
            "grad_norm": norm / shapes.examples,
        }
        if "rewards/margins" in metrics:
            # Rewards are linear in log-probs, so that a finite difference over at most a nat is their derivative.
            largest = jnp.max(jnp.abs(token))
            step = 1 / jnp.where(largest > 0, largest, 1.0)
            moved = Logps(policy.token + step * token, policy.other + step * other, policy.length)
            margins = metrics["rewards/margins"]
            after = on_examples(objective, given | {"policy": moved}, key, selector=selector)[1]["rewards/margins"]
            radius = safe_radius_pair(margins, (after - margins) / step)
            found["safe_radius_pair"] = jnp.min(jnp.where(both, radius, jnp.inf))
        if "selector/effective" in metrics:
            found["effective_sample_size"] = mean(metrics["selector/effective"])
        elif shapes.candidates > 2 and given.get("ref") is not None and "degree" not in wanted:
            weights = objective.hyperparameters.get("beta", 1.0) * log_ratio(policy, given["ref"])
            weights = jnp.where(jnp.asarray(batch.length) > 0, weights, ABSENT)[:, 1:]
            found["effective_sample_size"] = mean(effective_sample_size(weights))
        return {f"diagnostic/{name}": value for name, value in found.items()}

    return jax.jit(diagnose, out_shardings=grid.everywhere)


def _given(objective: Objective, policy: Logps, ref: Logps | None, other: Inputs) -> Inputs:
    asked = objective.needs - {"key"}
    weight = jnp.ones(policy.token.shape[0])
    given = {"policy": policy, "ref": ref, "state": objective.state, "weight": weight} | other
    missing = sorted(name for name in asked if given.get(name) is None)
    if missing:
        raise ValueError(
            f"objective {objective.name} asks for {', '.join(missing)}; give it by name: "
            + ", ".join(f"{name}=..." for name in missing)
        )
    return {"score": jnp.zeros(policy.token.shape[:2])} | given


def _by_numbers(
    objective: Objective, given: Inputs, key: Key, selector: Selector | None = None
) -> tuple[Metrics, Float[Array, " B"], _Numbers]:
    """Return the metrics and losses of the examples, and the gradient of their sum by the policy's numbers."""
    policy, prompt = given["policy"], given.get("prompt")
    found = {name: given[name] for name in (*TOKEN, "prompt") if given.get(name) is not None}

    def loss(numbers: _Numbers) -> tuple[Array, tuple[Array, Metrics]]:
        token, other, found = numbers
        moved = given | {"policy": Logps(token, other, policy.length), **found}
        if prompt is not None:
            moved["prompt"] = Logps(found["prompt"][0], found["prompt"][1], prompt.length)
        losses, metrics, _ = on_examples(objective, moved, key, selector=selector)
        return jnp.sum(losses), (losses, metrics)

    by_numbers, (losses, metrics) = jax.grad(loss, has_aux=True)((policy.token, policy.other, _real(found)))
    return metrics, losses, by_numbers


def _real(found: dict[str, Any]) -> dict[str, Any]:
    """Return what a scorer returns beside the responses' log-probs without the lengths of prompts."""
    return {name: (x.token, x.other) if isinstance(x, Logps) else x for name, x in found.items()}


def _by_tokens(policy: Logps, by_token: Array, by_other: Array) -> tuple[Array, Array]:
    """Return d loss / d log p of every token, 1 - p moving along, and d loss / d logit."""
    odds = by_token * jnp.exp(policy.other) - by_other * jnp.exp(policy.token)
    here = (policy.other > ABSENT) & (odds != 0)
    odds = jnp.where(here, odds, 0.0)
    return odds * jnp.exp(-jnp.where(here, policy.other, 0.0)), odds


def _forward(
    model: Model,
    shapes: Shapes,
    batch: Batch,
    wanted: Collection[str],
    ref_params: Params | None,
    grid: Grid,
) -> Scorer:
    numbers = token_scorer(model, shapes, grid, wanted)

    def forward(params: Params) -> tuple[Logps, dict[str, Any]]:
        found = numbers(params, batch.rows, batch.scored, ref_params)
        return place(found, batch.scored, batch.length, shapes)

    return forward


def _states(model: Model, batch: Batch, params: Params) -> tuple[Array, Array]:
    return model.apply(params, batch.rows, None)[0], model.unembed(params)


def _rates(
    model: Model, params: Params, direction: Params, shapes: Shapes, batch: Batch, grid: Grid
) -> tuple[Float[Array, "G S"], Float[Array, "G S"]]:
    """Return, of every scored token, how far the logits' rates of change lie apart, and the rate of its log-odds."""
    (hidden, unembed), (d_hidden, d_unembed) = jax.jvp(
        lambda params: _states(model, batch, params), (params,), (direction,)
    )
    product = functools.partial(jnp.einsum, "rcd,dv->rcv", preferred_element_type=jnp.float32)

    def one(x: tuple[Array, Array]) -> tuple[Array, Array]:
        source, target = x
        h, dh = predictors(hidden, source), predictors(d_hidden, source)
        logits = product(h, unembed.astype(h.dtype))
        rates = product(dh, unembed.astype(h.dtype)) + product(h, d_unembed.astype(h.dtype))
        own = target[..., None] == jnp.arange(logits.shape[-1])[None, None, :]
        others = jax.nn.softmax(jnp.where(own, ABSENT, logits), axis=-1)
        rate = jnp.sum(jnp.where(own, rates, -others * rates), axis=-1)
        return jnp.max(rates, axis=-1) - jnp.min(rates, axis=-1), rate

    groups = max(1, shapes.groups // grid.devices)  # that a device holds
    platform = grid.mesh.devices.flat[0].platform
    chunk = max(1, min(shapes.scored, positions_at_once(platform, unembed.shape[1]) // groups))

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -shapes.scored % chunk)))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk), 1, 0)

    def join(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, : shapes.scored]

    spread, rate = map(join, jax.lax.map(one, (split(batch.scored.source), split(batch.scored.target))))
    used = batch.scored.slot < shapes.examples * (shapes.candidates * shapes.response + shapes.prompt)
    return jnp.where(used, spread, 0.0), jnp.where(used, rate, 0.0)


def _pull(score: Scorer, params: Params) -> tuple[tuple[Logps, dict[str, Any]], Callable[[_Numbers], Params]]:
    """Return what a scorer returns, and the way back from the gradient of its numbers to that of the parameters."""

    def numbers(params: Params) -> tuple[_Numbers, tuple[Logps, dict[str, Any]]]:
        logps, distribution = score(params)
        return (logps.token, logps.other, _real(distribution)), (logps, distribution)

    _, pull, out = jax.vjp(numbers, params, has_aux=True)
    return out, lambda cotangent: pull(cotangent)[0]


def _gram(pull: Callable[[_Numbers], Params], cotangents: Any) -> tuple[Float[Array, "B N N"], Params]:
    """Return the inner products of the N gradients of each example, and the sum over the examples of the last one.

    Args:
        pull: see `_pull`.
        cotangents: of the N gradients, leaves [B, N, K, T] or, of prompts, [B, N, P].
    """
    examples = jax.tree.leaves(cotangents)[0].shape[0]

    def one(last: Params, x: tuple[Array, Any]) -> tuple[Params, Array]:
        example, cotangent = x
        alone = jax.tree.map(
            lambda c: jnp.zeros((c.shape[0], examples, *c.shape[1:]), c.dtype).at[:, example].set(c), cotangent
        )
        gradients = jax.vmap(pull)(alone)

        def inner(g: Array) -> Array:
            axes = tuple(range(1, g.ndim))
            return jnp.tensordot(g, g, axes=(axes, axes), precision=jax.lax.Precision.HIGHEST)

        last = jax.tree.map(lambda total, g: total + g[-1], last, gradients)
        return last, sum(map(inner, jax.tree.leaves(gradients)), start=jnp.zeros(()))

    like = jax.eval_shape(pull, jax.tree.map(lambda c: c[:, 0], cotangents))
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    last, gram = jax.lax.scan(one, nothing, (jnp.arange(examples), cotangents))
    return gram, last


def _entanglement(gram: Float[Array, "B N N"]) -> Entanglement:
    """Read off the inner products of the chosen's gradient, the rejected's, and those of losses."""
    chosen, rejected, inner = jnp.sqrt(gram[:, 0, 0]), jnp.sqrt(gram[:, 1, 1]), gram[:, 0, 1]
    return Entanglement(chosen, rejected, inner, _ratio(inner, chosen * rejected), -gram[:, 2:, :2])


def _ratio(a: Array, b: Array) -> Array:
    """Return a / b, and 0 where b is."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)

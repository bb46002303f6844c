"""Gradients by the parameters: how chosen and rejected are entangled, how fast logits move; see `slpojax.explore`."""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from slpojax.base import ABSENT, Array, Batch, Float, Logps, Model, Params, Shapes
from slpojax.explore.arrays import Outputs, real_parts
from slpojax.grid import Grid, one_device
from slpojax.head import positions_at_once, predictors
from slpojax.numerics import slope_of_soft, soften
from slpojax.scores import place, token_scorer

# params -> the log-probs of a batch, and what else of the head and of readers is asked for, [B, K, T] each, and the
# prompts' `Logps` [B, P] where the batch scores them.
Scorer: TypeAlias = Callable[[Params], tuple[Logps, dict[str, Any]]]


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


def scorer(
    model: Model,
    shapes: Shapes,
    batch: Batch,
    *,
    requested: Collection[str] = (),
    ref_params: Params | None = None,
    grid: Grid | None = None,
) -> Scorer:
    """Return params -> the log-probs of a batch.

    Args:
        model: whose.
        shapes: the batch's sizes.
        batch: a few examples.
        requested: what else is asked for, among `slpojax.needs.of_source("head", "reader")`.
        ref_params: the reference's, for "kl".
        grid: the devices; one where None.
    """
    return forward_function(model, shapes, batch, requested, ref_params, grid or one_device())


def entanglement(score: Scorer, params: Params, gradients: Sequence[Float[Array, "B K T"]] = ()) -> Entanglement:
    """Return the inner products of per-example gradients by the parameters; one example is in memory at a time.

    Args:
        score: params -> log-probs of a batch, as `scorer` makes it.
        params: where.
        gradients: N of them, of any losses with respect to the tokens' logits: `Gradient.odds`.
    """
    (logps, more), pull = pull_back(score, params)
    one = [jnp.zeros_like(logps.token).at[:, k].set(1.0) for k in (0, 1)]
    nothing = jnp.zeros_like(logps.token)
    # A gradient by the logit, which is token - other, counts for one and against the other.
    sides = [(c, nothing) for c in one] + [(jnp.asarray(c), -jnp.asarray(c)) for c in gradients]
    token, other = (jnp.stack(side, axis=1) for side in zip(*sides, strict=True))
    nothing_else = jax.tree.map(lambda x: jnp.zeros((*token.shape[:2], *x.shape[1:])), real_parts(more))
    return entanglement_of(gram(pull, (token, other, nothing_else))[0])


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
    return rates_of_change(model, params, direction, shapes, batch, grid or one_device())[0]


def forward_function(
    model: Model,
    shapes: Shapes,
    batch: Batch,
    requested: Collection[str],
    ref_params: Params | None,
    grid: Grid,
    ref_model: Model | None = None,
) -> Scorer:
    """Return params -> the log-probs of a batch, see `scorer`; the reference may be another model than the policy."""
    token_scores = token_scorer(model, shapes, grid, requested, ref_model)

    def forward(params: Params) -> tuple[Logps, dict[str, Any]]:
        return place(token_scores(params, batch.rows, batch.scored, ref_params), batch.scored, batch.length, shapes)

    return forward


def _states(model: Model, batch: Batch, params: Params) -> tuple[Array, Array]:
    return model.apply(params, batch.rows, None)[0], model.unembed(params)


def rates_of_change(
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
        logits = soften(product(h, unembed.astype(h.dtype)), model.cap)
        rates = product(dh, unembed.astype(h.dtype)) + product(h, d_unembed.astype(h.dtype))
        rates = rates if model.cap is None else rates * slope_of_soft(logits, model.cap)
        token = target[..., None] == jnp.arange(logits.shape[-1])[None, None, :]
        others = jax.nn.softmax(jnp.where(token, ABSENT, logits), axis=-1)
        rate = jnp.sum(jnp.where(token, rates, -others * rates), axis=-1)
        return jnp.max(rates, axis=-1) - jnp.min(rates, axis=-1), rate

    groups = max(1, shapes.groups // grid.devices)  # that a device holds
    at_once = positions_at_once(grid.mesh.devices.flat[0].platform, unembed.shape[1])
    chunk = max(1, min(shapes.scored, at_once // groups))

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -shapes.scored % chunk)))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk), 1, 0)

    def join(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, : shapes.scored]

    spread, rate = map(join, jax.lax.map(one, (split(batch.scored.source), split(batch.scored.target))))
    used = batch.scored.slot < shapes.examples * (shapes.candidates * shapes.response + shapes.prompt)
    return jnp.where(used, spread, 0.0), jnp.where(used, rate, 0.0)


def pull_back(score: Scorer, params: Params) -> tuple[tuple[Logps, dict[str, Any]], Callable[[Outputs], Params]]:
    """Return what a scorer returns, and the way back from the gradient by it to that of the parameters."""

    def outputs(params: Params) -> tuple[Outputs, tuple[Logps, dict[str, Any]]]:
        logps, more = score(params)
        return (logps.token, logps.other, real_parts(more)), (logps, more)

    _, pull, out = jax.vjp(outputs, params, has_aux=True)
    return out, lambda cotangent: pull(cotangent)[0]


def gram(pull: Callable[[Outputs], Params], cotangents: Any) -> tuple[Float[Array, "B N N"], Params]:
    """Return the inner products of the N gradients of each example, and the sum over the examples of the last one.

    Args:
        pull: the gradient by a scorer's outputs -> that by the parameters.
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
    last, products = jax.lax.scan(one, nothing, (jnp.arange(examples), cotangents))
    return products, last


def entanglement_of(products: Float[Array, "B N N"]) -> Entanglement:
    """Read off the inner products of the chosen's gradient, the rejected's, and those of losses."""
    chosen, rejected, inner = jnp.sqrt(products[:, 0, 0]), jnp.sqrt(products[:, 1, 1]), products[:, 0, 1]
    return Entanglement(chosen, rejected, inner, ratio(inner, chosen * rejected), -products[:, 2:, :2])


def ratio(a: Array, b: Array) -> Array:
    """Return a / b, and 0 where b is."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)

"""Gradients and fields of an objective on log-probs that anybody may write down; see `slpojax.explore`."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from slpojax import needs
from slpojax.base import ABSENT, Array, Float, Key, Logps
from slpojax.numerics import log1mexp
from slpojax.objectives import Objective
from slpojax.selectors import Selector
from slpojax.sequence import size
from slpojax.step import Inputs, Metrics, on_examples

# (token, other, what else): the real numbers of what a model says of a batch; (token, other) of a prompt's.
Outputs: TypeAlias = tuple[Array, Array, dict[str, Any]]


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
        objective: an objective of pairs, of labelled responses or of more candidates.
        policy: [B, K, T]; candidate 0 is the preferred one.
        ref: the same responses under the reference.
        key: for an objective that samples.
        **other: what else the objective asks for: `previous`, `prompt` [B, P], `score` [B, K], `label` [B], `weight`
            [B] (1 where it is not given), `state`, and those of the head and of readers [B, K, T], which stay as
            they are while the token's log-prob moves.

    Raises:
        ValueError: the objective asks for something that is not there.

    Example:
        >>> from slpojax import objectives
        >>> same = responses([[-3.0, -4.0]], [2, 2])
        >>> print(gradient(objectives.build("dpo.sigmoid", beta=0.1), same, same).response)
        [[-0.05  0.05]]
    """
    inputs = _inputs(objective, policy, ref, other)
    key = jax.random.key(0) if key is None else key
    _, losses, (by_token, by_other, _) = by_model_outputs(objective, inputs, key)
    token, odds = by_tokens(policy, by_token, by_other)
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
        objective: an objective of pairs, of labelled responses or of more candidates.
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

    grid = jax.vmap(jax.vmap(at, in_axes=(None, 0)), in_axes=(0, None))
    return jax.jit(grid)(jnp.asarray(chosen, jnp.result_type(float)), jnp.asarray(rejected, jnp.result_type(float)))


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


def _inputs(objective: Objective, policy: Logps, ref: Logps | None, other: Inputs) -> Inputs:
    asked = objective.needs - {"key"}
    weight = jnp.ones(policy.token.shape[0])
    inputs = {"policy": policy, "ref": ref, "state": objective.state, "weight": weight} | other
    missing = sorted(name for name in asked if inputs.get(name) is None)
    if missing:
        raise ValueError(
            f"objective {objective.name} asks for {', '.join(missing)}; give it by name: "
            + "; ".join(f"{name}=..., {needs.describe(name)}" for name in missing)
        )
    return {"score": jnp.zeros(policy.token.shape[:2])} | inputs


def by_model_outputs(
    objective: Objective, inputs: Inputs, key: Key, selector: Selector | None = None
) -> tuple[Metrics, Float[Array, " B"], Outputs]:
    """Return the metrics and losses of the examples, and the gradient of their sum by what the model says of them."""
    policy, prompt = inputs["policy"], inputs.get("prompt")
    more = {
        name: inputs[name] for name in (*needs.of_source("head", "reader"), "prompt") if inputs.get(name) is not None
    }

    def loss(outputs: Outputs) -> tuple[Array, tuple[Array, Metrics]]:
        token, other, more = outputs
        moved = inputs | {"policy": Logps(token, other, policy.length), **more}
        if prompt is not None:
            moved["prompt"] = Logps(more["prompt"][0], more["prompt"][1], prompt.length)
        losses, metrics, _ = on_examples(objective, moved, key, selector=selector)
        return jnp.sum(losses), (losses, metrics)

    by_outputs, (losses, metrics) = jax.grad(loss, has_aux=True)((policy.token, policy.other, real_parts(more)))
    return metrics, losses, by_outputs


def real_parts(more: dict[str, Any]) -> dict[str, Any]:
    """Return what a scorer returns beside the responses' log-probs without the lengths of prompts."""
    return {name: (x.token, x.other) if isinstance(x, Logps) else x for name, x in more.items()}


def by_tokens(policy: Logps, by_token: Array, by_other: Array) -> tuple[Array, Array]:
    """Return d loss / d log p of every token, 1 - p moving along, and d loss / d logit."""
    odds = by_token * jnp.exp(policy.other) - by_other * jnp.exp(policy.token)
    moves = (policy.other > ABSENT) & (odds != 0)
    odds = jnp.where(moves, odds, 0.0)
    return odds * jnp.exp(-jnp.where(moves, policy.other, 0.0)), odds

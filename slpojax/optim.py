"""The optimiser: learning-rate schedule, clipping and update rule, as one optax transformation.

Knows names, numbers, gradients, and that parameters under `layers` are stacked; knows no model and no configuration.
The update rules are optax's own. What is decided here is which defaults make them equal to the optimisers that
preference papers ran, which are PyTorch's, and that a layer of a stack is treated as it would be alone.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from slpojax import named
from slpojax.base import Array, Float, Int, Params
from slpojax.defaults import RANGES

# Keyword hyperparameters and their defaults. rmsprop and adamw are PyTorch's (no decay of weights unless asked for),
# lion and adafactor are their papers'. The state has the parameters' dtype, float32, unless `build` gets another.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "rmsprop": {"decay": 0.99, "eps": 1e-8, "eps_in_sqrt": False, "initial_scale": 0.0, "centered": False},
    "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0, "weight_decay": 0.0, "nesterov": False},
    "lion": {"b1": 0.9, "b2": 0.99, "weight_decay": 0.0},
    "adafactor": {
        "min_dim_size_to_factor": 128,
        "decay_rate": 0.8,
        "multiply_by_parameter_scale": True,
        "clipping_threshold": 1.0,
        "weight_decay_rate": None,
        "eps": 1e-30,
        "factored": True,
    },
}

# After the warm-up: the share of the peak left when a fraction of the remaining steps is done.
_SHAPES: dict[str, Callable[[Array], Array]] = {
    "constant": jnp.ones_like,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
}


def defaults(name: str) -> dict[str, Any]:
    """Return the keyword hyperparameters of an optimiser with their defaults.

    Raises:
        ValueError: there is no such optimiser.

    Example:
        >>> defaults("lion")
        {'b1': 0.9, 'b2': 0.99, 'weight_decay': 0.0}
    """
    return dict(named.choose("optimizer", name, _DEFAULTS))


def make_schedule(
    name: str, *, learning_rate: float | Float[Array, ""], warmup_steps: int, total_steps: int
) -> Callable[[Array | int], Float[Array, ""]]:
    r"""Return the learning rate as a pure function of the step, counted from 0.

    .. math:: \mathrm{lr}(s) = \mathrm{peak} \cdot \min\left(1, \frac{s + 1}{w + 1}\right)
              \cdot \mathrm{shape}\left(\frac{\max(0, s - w)}{n - w}\right)

    Args:
        name: constant | linear | cosine, the shape after the warm-up; the last two end at 0 after `total_steps`.
        learning_rate: the peak.
        warmup_steps: w; the first step already moves, by 1 / (w + 1) of the peak.
        total_steps: n.

    Raises:
        ValueError: there is no such shape.

    Example:
        >>> float(make_schedule("constant", learning_rate=1.0, warmup_steps=3, total_steps=9)(0))
        0.25
    """
    shape = named.choose("schedule", name, _SHAPES)

    def rate(step: Array | int) -> Array:
        warm = jnp.minimum(1.0, (step + 1) / (warmup_steps + 1))
        done = jnp.clip((step - warmup_steps) / max(1, total_steps - warmup_steps), 0.0, 1.0)
        return jnp.asarray(learning_rate * warm * shape(done))

    return rate


def clip_by_norm(clip_norm: float) -> optax.GradientTransformation:
    r"""Scale the whole gradient down to a global norm as `torch.nn.utils.clip_grad_norm_` does.

    .. math:: g \leftarrow g \cdot \min\left(1, \frac{c}{\lVert g \rVert + 10^{-6}}\right)

    optax's own clips to exactly c; the 1e-6 is written out because for a small c it is more than rounding.
    """

    def update(gradients: Params, _: Any) -> Params:
        factor = jnp.minimum(1.0, clip_norm / (optax.tree.norm(gradients) + 1e-6))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradients)

    return optax.stateless(update)


def per_layer(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Treat every layer of a stacked leaf as a leaf of its own: the same numbers as if the layers were not stacked.

    For optimisers whose update of a number depends on the leaf that it is in, such as Adafactor by its factors, its
    clipping and its scale, which are of a leaf's root mean square. A leaf is stacked along its first axis where its
    path holds the name "layers"; its state is stacked likewise, under the same path.
    """

    def init(params: Params) -> Any:
        axes = _stacked_axes(params)
        if not jax.tree.leaves(axes):
            return optimizer.init(params)
        one = jax.tree.map(lambda x, axis: x[0] if axis == 0 else x, params, axes, is_leaf=lambda x: x is None)
        state_axes = _stacked_axes(jax.eval_shape(optimizer.init, one))
        return jax.vmap(optimizer.init, in_axes=(axes,), out_axes=state_axes)(params)

    def update(gradients: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        axes, state_axes = _stacked_axes(gradients), _stacked_axes(state)
        if not jax.tree.leaves(axes):
            return optimizer.update(gradients, state, params)
        layers = jax.vmap(optimizer.update, in_axes=(axes, state_axes, axes), out_axes=(axes, state_axes))
        return layers(gradients, state, params)

    return optax.GradientTransformation(init, update)


def _stacked_axes(tree: Any) -> Any:
    """Return 0 for every leaf that is stacked and None for every other one, as `jax.vmap` takes them."""

    def axis(path: tuple[Any, ...], _: Any) -> int | None:
        names = [getattr(key, "key", getattr(key, "name", None)) for key in path]
        return 0 if "layers" in names else None

    return jax.tree_util.tree_map_with_path(axis, tree)


class Rounded(NamedTuple):
    """The state of `in_bfloat16`: the updates so far, which the rounding is drawn from, and the optimiser's state."""

    updates: Int[Array, ""]
    inner: Any


def in_bfloat16(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keep an optimiser's moments in bfloat16 between updates; the updates themselves are computed in float32.

    Moments are the float32 leaves of its state that have an axis: adamw's mu and nu, rmsprop's nu, lion's mu,
    adafactor's factors. Counts and scalars stay as they are. What is kept is rounded at random, up as often as the
    distance says, so that it is right in the mean: to the nearest it would stand still, as a decay of 0.999 changes
    less in a step than bfloat16 can tell apart. The draws depend on the update's number alone, so a run that is resumed
    is the run that never stopped.
    """

    def init(params: Params) -> Rounded:
        return Rounded(jnp.zeros((), jnp.int32), jax.tree.map(nearest, optimizer.init(params)))

    def nearest(x: Array) -> Array:
        return x.astype(jnp.bfloat16) if _is_moment(x) else x

    def update(gradients: Params, state: Rounded, params: Params | None = None) -> tuple[Params, Rounded]:
        wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, state.inner)
        updates, inner = optimizer.update(gradients, wide, params)
        leaves, structure = jax.tree.flatten(inner)
        number = state.updates.astype(jnp.uint32) * len(leaves)
        kept = [_round(x, number + i) if _is_moment(x) else x for i, x in enumerate(leaves)]
        return updates, Rounded(state.updates + 1, jax.tree.unflatten(structure, kept))

    return optax.GradientTransformation(init, update)


def build(
    name: str,
    *,
    learning_rate: float,
    schedule: str,
    warmup_steps: int,
    total_steps: int,
    clip_norm: float,
    moments: str = "float32",
    **kwargs: Any,
) -> optax.GradientTransformationExtraArgs:
    """Return clipping followed by the optimiser `name` under a schedule.

    Its state does not depend on the learning rate, and `update(gradients, state, params, learning_rate=peak)` takes
    another peak, which may be a traced scalar: one compiled step serves every rate.

    Args:
        name: rmsprop | adamw | lion | adafactor; the last one treats every layer of a stacked leaf by itself.
        learning_rate: the peak where `update` is given no other.
        schedule: constant | linear | cosine, the shape after the warm-up.
        warmup_steps: steps of linear warm-up.
        total_steps: steps of the run; a linear or cosine schedule ends there.
        clip_norm: largest global norm of the gradient; 0 turns clipping off.
        moments: float32 | bfloat16, the dtype in which the state holds its moments between updates.
        **kwargs: some of the hyperparameters that `defaults(name)` lists.

    Raises:
        ValueError: an unknown name, schedule, hyperparameter or dtype of the moments, or a value out of its range.
    """
    settings = defaults(name)
    named.check_keys("optimizer", name, settings, kwargs)
    for key, value in kwargs.items():
        settings[key] = named.hyperparameter(f"optimizer.{key}", value, settings[key])
        if f"optimizer.{key}" in RANGES:
            named.within(f"optimizer.{key}", settings[key], *RANGES[f"optimizer.{key}"])
    named.choose("schedule", schedule, _SHAPES)
    rounded = named.choose("moments", moments, _MOMENTS)

    def at(peak: float | Float[Array, ""]) -> optax.GradientTransformation:
        rate = make_schedule(schedule, learning_rate=peak, warmup_steps=warmup_steps, total_steps=total_steps)
        rule = getattr(optax, name)(rate, **settings)
        rule = rounded(per_layer(rule) if name == "adafactor" else rule)
        return optax.chain(clip_by_norm(clip_norm), rule) if clip_norm > 0 else rule

    fixed = at(learning_rate)

    def update(
        gradients: Params,
        state: Any,
        params: Params | None = None,
        *,
        learning_rate: Float[Array, ""] | None = None,
        **_: Any,
    ) -> tuple[Params, Any]:
        rule = fixed if learning_rate is None else at(learning_rate)
        return rule.update(gradients, state, params)

    return optax.GradientTransformationExtraArgs(fixed.init, update)


def updates(state: Any) -> Int[Array, ""]:
    """Return how many updates the state of an optimiser from `build` has behind it: what its schedule counts."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return next(leaf for path, leaf in leaves if getattr(path[-1], "name", "") == "count")


_MOMENTS: dict[str, Callable[[optax.GradientTransformation], optax.GradientTransformation]] = {
    "float32": lambda optimizer: optimizer,
    "bfloat16": in_bfloat16,
}


def _is_moment(x: Array) -> bool:
    return x.dtype == jnp.float32 and x.ndim > 0


def _round(x: Float[Array, "*shape"], number: Array) -> Array:
    """Return float32 as bfloat16, rounded at random by the draw of a number.

    It is rounded away from zero with the share of bfloat16's step that is cut off as probability: 16 random bits are
    added to the 16 that bfloat16 lacks. They are a hash of the number and the place in the array, not of JAX's
    generator, whose code for every leaf took as long to compile as the rest of a step.
    """
    strides = [math.prod(x.shape[axis + 1 :]) for axis in range(x.ndim)]
    places = [jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) for axis in range(x.ndim)]
    place = functools.reduce(
        jnp.add, (a * jnp.uint32(stride % 2**32) for a, stride in zip(places, strides, strict=True))
    )
    drawn = _scramble(_scramble(place) + _scramble(~number)) >> 16
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + drawn
    rounded = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def _scramble(x: Array) -> Array:
    """Mix 32 bits one to one: multiply by odd numbers, and let the high bits reach the low ones.

    Reference:
        Austin Appleby, MurmurHash3, 2011: the multipliers and shifts of its finaliser.
    """
    for shift, odd in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(odd)
    return x ^ (x >> 16)

"""What the tests of the step share: a state on a mesh, and the step that takes it."""

from typing import NamedTuple

import hurry
import jax
import jax.numpy as jnp
import numpy as np
import optax

from slpojax import grid, step
from slpojax.base import Model, Shapes, State
from slpojax.grid import Grid
from slpojax.objectives import Objective
from slpojax.selectors import Selector


class Prepared(NamedTuple):
    """A train step (state, frozen, batch) -> (state, metrics), the state that it starts from, and where it lives."""

    train_step: jax.stages.Wrapped
    state: State
    where: State


def grid_of(*sizes: int) -> Grid:
    """As many of the fake devices as the sizes ask for."""
    return grid.make(*sizes, devices=jax.devices()[: int(np.prod(sizes))])


def prepare(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    shapes: Shapes,
    params,
    devices: Grid,
    *,
    selector: Selector | None = None,
    donate: bool = True,
    each: bool = False,
) -> Prepared:
    """Place the parameters and all that training adds to them on a mesh."""
    statistics = jax.tree.map(jnp.float32, objective.state)
    state = State(jnp.int32(0), params, optimizer.init(params), statistics, jax.random.key(0))
    where, _ = grid.tree(devices, model.sharding, state)
    optimizer = optax.with_extra_args_support(optimizer)
    update = step.update(model, step.WHOLE, step.Method(objective, selector), optimizer, shapes, devices, each=each)
    out = (where, devices.everywhere)
    train_step = jax.jit(update, donate_argnums=0 if donate else (), out_shardings=out)
    return Prepared(train_step, jax.tree.map(jax.device_put, state, where), where)


def compiled(function: jax.stages.Wrapped, *inputs):
    """Most of what these tests take is compilation; what they compile runs for milliseconds."""
    return function.lower(*inputs).compile(compiler_options=hurry.OPTIONS)

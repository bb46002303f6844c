"""What the tests of the step share: a state on a mesh, and the step that takes it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from slpojax import grid, step
from slpojax.base import Model, Shapes, State
from slpojax.objectives import Objective


class Prepared(NamedTuple):
    """A train step, the state that it starts from, and where their arrays live."""

    train_step: jax.stages.Wrapped
    state: State
    where: State
    mesh: jax.sharding.Mesh


def mesh_of(*sizes: int) -> jax.sharding.Mesh:
    """A mesh of as many of the fake devices as the sizes ask for."""
    return grid.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])


def prepare(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    shapes: Shapes,
    params,
    *,
    mesh: jax.sharding.Mesh,
    accumulate: int = 1,
) -> Prepared:
    """Place the parameters and all that training adds to them on a mesh."""
    statistics = jax.tree.map(jnp.float32, objective.state)
    state = State(jnp.int32(0), params, optimizer.init(params), statistics, jax.random.key(0))
    where, _ = grid.tree(mesh, model.sharding, state)
    train_step = step.make_train_step(
        model,
        objective,
        optimizer,
        shapes,
        accumulate=accumulate,
        batch_devices=grid.batch_devices(mesh),
        everywhere=grid.replicated(mesh),
        state_sharding=where,
    )
    return Prepared(train_step, jax.tree.map(jax.device_put, state, where), where, mesh)


def compiled(function: jax.stages.Wrapped, *inputs):
    """Most of what these tests take is compilation; what they compile runs for milliseconds."""
    return function.lower(*inputs).compile(compiler_options={"xla_backend_optimization_level": 0})

"""What the benchmarks of whole steps share: dialogues of HH's lengths, a mesh, a state, and the step itself.

Needs jax, flax, optax, numpy and jaxtyping alone, so that it runs on a machine that was lent with little on it.
"""

import importlib.util
import pathlib
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import common  # noqa: F401  puts the checkout on the path
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh

from slpojax import logps, objectives, sharding, step
from slpojax.base import Batch, Logps, Model, Params, Shapes, State

if importlib.util.find_spec("grain") is None:  # slpojax.data as a bare folder: its layout of rows needs NumPy alone
    package = types.ModuleType("slpojax.data")
    package.__path__ = [str(pathlib.Path(common.ROOT, "slpojax", "data"))]
    sys.modules["slpojax.data"] = package

from slpojax.data.examples import Example, Examples, build
from slpojax.data.rows import pack


def lengths(count: int, candidates: int = 2, seed: int = 0, longest: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of prompts [count] and responses [count, candidates], log-normal as those of HH.

    The means are about 138 and 60; prompts have at least 4 tokens, and with any of their responses at most `longest`.
    """
    drawn = np.random.default_rng(seed).lognormal([4.65] + [3.8] * candidates, 0.75, (count, 1 + candidates))
    drawn = np.clip(drawn, 4, longest // 2).astype(int)
    return drawn[:, 0], drawn[:, 1:]


def examples(prompt: Iterable[int], response: Iterable[Iterable[int]], vocabulary: int, seed: int = 0) -> Examples:
    """Return examples of random tokens, of given lengths, the first candidate scored best."""
    rng = np.random.default_rng(seed)

    def text(size: int) -> np.ndarray:
        return rng.integers(0, vocabulary, size).astype(np.int32)

    made = [
        Example(text(size), tuple(text(n) for n in sizes), tuple(float(-k) for k in range(len(sizes))), i)
        for i, (size, sizes) in enumerate(zip(prompt, np.asarray(response).tolist()))
    ]
    return build(made, candidates=len(made[0].responses))


def batch_of(pool: Examples, shapes: Shapes, index: Iterable[int] | None = None) -> Batch:
    """Lay examples out in rows, all of them or those at `index`."""
    chosen = range(len(pool)) if index is None else [int(i) for i in index]
    return pack([pool[i] for i in chosen], shapes)


def one_device() -> Mesh:
    return sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])


def topology(name: str, **axes: int) -> Mesh:
    """Return the mesh of a TPU that is not there, to compile for; it needs libtpu."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    return sharding.make_mesh(**axes, devices=list(devices))


def first_state(mesh: Mesh, model: Model, optimizer: optax.GradientTransformation) -> State:
    """Return a state on its devices, of parameters drawn at random."""
    params = jax.jit(model.init)(jax.random.key(0))
    state = State(jnp.int32(0), params, jax.jit(optimizer.init)(params), None, jax.random.key(0))
    return jax.tree.map(jax.device_put, state, where(mesh, model, state))


def where(mesh: Mesh, model: Model, tree: Any) -> Any:
    """Return the sharding of every leaf of a state, of parameters, or of their shapes."""
    return sharding.tree(mesh, model.sharding, tree)[0]


def train_step(
    mesh: Mesh,
    model: Model,
    objective: str,
    optimizer: optax.GradientTransformation,
    shapes: Shapes,
    state: State,
    **options: Any,
) -> Callable[[State, Params | None, Batch], tuple[State, dict]]:
    """Return the program's own step; `options` are further ones of `slpojax.step.make_train_step`."""
    return step.make_train_step(
        model,
        objectives.build(objective),
        optimizer,
        shapes,
        **{"accumulate": 1, **options},
        batch_devices=sharding.batch_devices(mesh),
        everywhere=sharding.replicated(mesh),
        state_sharding=where(mesh, model, state),
    )


def scorer(mesh: Mesh, model: Model, shapes: Shapes) -> Callable[[Params, Batch], Logps]:
    """Return (params, batch) -> log-probs without gradient, as the reference's cache is made."""
    rows = shapes.rows // sharding.batch_devices(mesh)
    return logps.logps_function(model, shapes, rows_per_device=rows, everywhere=sharding.replicated(mesh))


def repeated(one: Callable, held: list[State], batches: list[Batch], ref_params: Params | None = None) -> Callable:
    """Return what takes one step, on the next of the batches, and waits for it; `held[0]` is the state."""
    count = iter(range(1 << 30))

    def run() -> dict:
        held[0], metrics = one(held[0], ref_params, batches[next(count) % len(batches)])
        return jax.block_until_ready(metrics)

    return run

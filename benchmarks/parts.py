"""What the benchmarks of whole steps share: dialogues of HH's lengths, a mesh, a state, and the step itself.

Needs jax, flax, optax and numpy alone, so that it runs on a machine that was lent with little on it.
"""

import importlib.util
import os
import pathlib
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import common  # noqa: F401  puts the checkout on the path
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh

if importlib.util.find_spec("jaxtyping") is None:  # annotations alone
    _nothing = types.new_class("Nothing", exec_body=lambda body: body.update(__class_getitem__=lambda *_: Any))
    sys.modules["jaxtyping"] = types.SimpleNamespace(Bool=_nothing, Float=_nothing, Int=_nothing)  # type: ignore
if importlib.util.find_spec("grain") is None:  # slpojax.data as a bare folder: the layout of rows needs NumPy alone
    _folder = types.ModuleType("slpojax.data")
    _folder.__path__ = [str(pathlib.Path(common.ROOT, "slpojax", "data"))]
    sys.modules["slpojax.data"] = _folder

from slpojax import grid, logps, objectives, step
from slpojax.base import Batch, Logps, Model, Params, Shapes, State
from slpojax.data.examples import Example, Examples, build
from slpojax.data.planning import plan
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


def batch_of(pool: Examples, shapes: Shapes) -> Batch:
    """Lay all examples out in rows."""
    return pack([pool[i] for i in range(len(pool))], shapes)


def full_rows(rows: int, length: int, vocabulary: int, groups: int = 1) -> tuple[Shapes, Batch]:
    """Return a batch of as many dialogues as so many rows hold, each group an equal share of the rows."""
    prompt, response = lengths(rows * length // 64)
    count = int(np.searchsorted(np.cumsum(prompt + response.sum(axis=1)), rows * length))
    while True:
        pool = examples(prompt[:count], response[:count], vocabulary)
        shapes = plan(pool, [np.arange(count)], row_length=length, multiple_of=groups)
        if shapes.rows <= rows:
            return shapes, batch_of(pool, shapes)
        count -= 1


def one_device(device: jax.Device | None = None) -> Mesh:
    return grid.make_mesh(1, 1, 1, devices=[device or jax.devices()[0]])


# What XLA asks of a GPU that is not there (a text of its GpuTargetConfigProto); sizes are those of the data sheets.
HOPPER = """
    platform_name: "CUDA" device_description_str: "NVIDIA {name}"
    dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 13 }}
    gpu_device_info {{
        cuda_compute_capability {{ major: 9 }} device_memory_size: {memory} memory_bandwidth: {bandwidth}
        core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: 52428800
        threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
        shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
        registers_per_block_limit: 65536 registers_per_core_limit: 65536
        block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
    }}
"""
GPUS = {  # bytes, and bytes a second
    "h100": {"name": "H100 80GB HBM3", "memory": 80 * 2**30, "bandwidth": 3_352_000_000_000},
    "h200": {"name": "H200", "memory": 141 * 10**9, "bandwidth": 4_800_000_000_000},
}


def compile_for(topology: str) -> tuple[str, ...]:
    """Keep JAX off the devices of this machine, if there is a topology; call it before anything is computed.

    Args:
        topology: TPUs as "v5e:2x4", which needs libtpu (`pip install "jax[tpu]"`); or the GPUs of one host as "h200:8",
            which needs the CUDA plugin and cuDNN (`pip install "jax[cuda13]"`); "" for this machine.

    Returns:
        The packages that compile for it, beside JAX's own.
    """
    if not topology:
        return ()
    jax.config.update("jax_platforms", "cpu")
    if kernel(topology) == "splash":
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no TPU to share
        return ("libtpu",)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"  # nothing to try it on
    return "jax-cuda13-plugin", "nvidia-cudnn-cu13"


def kernel(topology: str) -> str:
    """Return the implementation of attention that is made for a topology; "" is this machine's processor."""
    return ("cudnn" if topology.partition(":")[0] in GPUS else "splash") if topology else "tiles"


def topology(name: str, **axes: int) -> Mesh:
    """Return the mesh of devices that are not there, after `compile_for`."""
    kind, _, number = name.partition(":")
    if kind in GPUS:
        size, config = f"1x1x{number or 1}", HOPPER.format_map(GPUS[kind])
        found = topologies.get_topology_desc(size, platform="cuda", topology=size, target_config=config)
    else:
        found = topologies.get_topology_desc(name, platform="tpu")
    return grid.make_mesh(**axes, devices=list(found.devices))


def first_state(mesh: Mesh, model: Model, optimizer: optax.GradientTransformation) -> State:
    """Return a state on its devices, of parameters drawn at random."""
    params = jax.jit(model.init)(jax.random.key(0))
    state = State(jnp.int32(0), params, jax.jit(optimizer.init)(params), None, jax.random.key(0))
    return jax.tree.map(jax.device_put, state, where(mesh, model, state))


def where(mesh: Mesh, model: Model, tree: Any) -> Any:
    """Return the sharding of every leaf of a state, of parameters, or of their shapes."""
    return grid.tree(mesh, model.sharding, tree)[0]


def train_step(
    mesh: Mesh,
    model: Model,
    objective: str | Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    shapes: Shapes,
    state: State,
    **options: Any,
) -> Callable[[State, Params | None, Batch], tuple[State, dict]]:
    """Return the program's own step.

    Args:
        mesh: of the state and the batch.
        model: the policy's.
        objective: its name, or its name with hyperparameters as in a config.
        optimizer: the state's.
        shapes: of the batch.
        state: or its shapes.
        **options: further ones of `slpojax.step.make_train_step`.
    """
    return step.make_train_step(
        model,
        objectives.build(**({"name": objective} if isinstance(objective, str) else objective)),
        optimizer,
        shapes,
        **{"accumulate": 1, **options},
        batch_devices=grid.batch_devices(mesh),
        everywhere=grid.replicated(mesh),
        state_sharding=where(mesh, model, state),
    )


def scorer(mesh: Mesh, model: Model, shapes: Shapes) -> Callable[[Params, Batch], Logps]:
    """Return (params, batch) -> log-probs without gradient, as the reference's cache is made."""
    rows = shapes.rows // grid.batch_devices(mesh)
    return logps.logps_function(model, shapes, rows_per_device=rows, everywhere=grid.replicated(mesh))


def repeated(one: Callable, held: list[State], batches: list[Batch], ref_params: Params | None = None) -> Callable:
    """Return what takes one step, on the next of the batches, and waits for it; `held[0]` is the state."""
    count = iter(range(1 << 30))

    def run() -> dict:
        held[0], metrics = one(held[0], ref_params, batches[next(count) % len(batches)])
        return jax.block_until_ready(metrics)

    return run


def runner(function: Callable[..., Any], *inputs: Any) -> Callable[[], Any]:
    """Return what calls the function and waits for the result."""
    return lambda: jax.block_until_ready(function(*inputs))

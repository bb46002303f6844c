"""The best of several plans: meshes, recomputation, micro-batches and attention, tried one after the other.

What cannot fit by its state alone is not compiled. Knows a configuration; a plan is made by `slpojax.plan.making`.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from slpojax import bench as benches
from slpojax import grid, log, roofline, settings, topology, training
from slpojax.grid import Grid
from slpojax.plan import making, report, shapes
from slpojax.plan.making import Result
from slpojax.settings import Config

Changes = Mapping[str, Any]


def run(config: Config) -> str:
    """Return the ranking of the plans that were tried, and the lines of the best for a configuration.

    Args:
        config: every key of slpojax/defaults.py; `plan.tries` says how many are compiled at most.

    Raises:
        ValueError: the configuration or the topology is wrong, or nothing could fit.
    """
    name = config.plan.topology
    if not name:
        raise ValueError("config.plan.search compares meshes of a topology; set --config.plan.topology, as v5e-16")
    hf_config, _ = shapes.find(config)
    asked = list(candidates(config, _devices(name)))
    fits = _meshes_that_fit(config, hf_config, asked)
    small = [changes for changes in asked if _mesh(changes) in fits]
    chosen = small[: config.plan.tries]
    log.say(
        f"search: {len(asked)} plans; the state of {len(asked) - len(small)} alone does not fit; compiling "
        f"{len(chosen)} of the others (plan.tries), some minutes each for a large model"
    )
    if not chosen:
        raise ValueError(f"no mesh of {name} holds the state of this configuration; give more or larger devices")
    found: list[tuple[Changes, Result]] = []
    for number, changes in enumerate(chosen, 1):
        log.say(f"search: {number} of {len(chosen)}: {lines_of(changes)}")
        try:
            found.append((changes, making.make(settings.replace(config, {**changes, "plan.programs": "step"}))))
        except ValueError as error:  # of this one: an attention that takes no such model, rows that hold no example
            log.say(f"search: left out: {error}")
    if not found:
        raise ValueError("every plan was refused, for the reasons above; mend the configuration first")
    return table(report.ranked(found))


def candidates(config: Config, devices: int) -> Iterator[Changes]:
    """Yield the keys of every plan that is worth a try, the likeliest first.

    Weights are split over some of the devices of a slice (`mesh.fsdp`), all of them first, and repeated over the rest
    (`mesh.data`); a device takes one micro-batch, two or four in a step; layers are recomputed, or not.

    Args:
        config: whose mesh.tensor stays as it is.
        devices: JAX devices.
    """
    platform = topology.platform(config.plan.topology)
    attention = topology.kernel(config.plan.topology) if config.model.dtype == "bfloat16" else "tiles"
    tensor = max(1, config.mesh.tensor)
    rest, slices = devices // tensor, topology.parse(config.plan.topology).slices
    splits = [size for size in range(rest // slices, 0, -1) if rest % (size * slices) == 0 and size & (size - 1) == 0]
    kernels = dict.fromkeys([attention, "tiles"] if platform == "tpu" else [attention])
    for kernel, remat, micro, fsdp in itertools.product(kernels, ("layer", "none"), (1, 2, 4), splits):
        if micro * rest > config.batch_size:
            continue
        yield {
            "mesh.data": rest // fsdp,
            "mesh.fsdp": fsdp,
            "mesh.tensor": tensor,
            "model.remat": remat,
            "accumulate": micro * rest,
            "model.attention": kernel,
        }


def _mesh(changes: Changes) -> tuple[int, ...]:
    return tuple(changes[f"mesh.{axis}"] for axis in grid.AXES)


def _meshes_that_fit(config: Config, hf_config: Mapping[str, Any], asked: list[Changes]) -> set[tuple[int, ...]]:
    """Return the meshes whose devices have the memory for the state, the gradients and the frozen weights."""
    name = config.plan.topology
    memory = roofline.DEVICES[topology.parse(name).device].memory
    there = making.devices_of(settings.replace(config, {"mesh.data": -1, "mesh.fsdp": 1, "mesh.tensor": 1}))
    found = list(there.mesh.devices.flat)
    meshes = {_mesh(changes) for changes in asked}
    return {mesh for mesh in meshes if state_bytes(config, hf_config, grid.make(*mesh, devices=found)) <= memory}


def state_bytes(config: Config, hf_config: Mapping[str, Any], devices: Grid) -> int:
    """Return the bytes that each device holds of state, gradients and frozen weights; nothing is compiled.

    Args:
        config: every key of slpojax/defaults.py.
        hf_config: the content of the model's config.json.
        devices: the grid.
    """
    at = benches.of_model(config, dict(hf_config), devices)
    params, optimizer = benches.params_like(at), training.optimizer(config, 1000)
    moments = jax.eval_shape(optimizer.init, params)
    moments = grid.placed(moments, grid.tree(devices, at.model.sharding, moments)[0])
    return 2 * grid.held(params) + grid.held(moments) + grid.held(benches.base_like(config, at))


def lines_of(changes: Changes) -> str:
    """Return keys as arguments of a command line.

    Example:
        >>> lines_of({"mesh.fsdp": 4, "model.remat": "layer"})
        '--config.mesh.fsdp=4 --config.model.remat=layer'
    """
    return " ".join(f"--config.{key}={value}" for key, value in changes.items())


def table(found: list[tuple[Changes, Result]]) -> str:
    """Return a Markdown table of plans in the order given, and the lines of the first for a configuration.

    Args:
        found: the keys of each, and the plan.
    """
    lines = [
        "| fits | GB of a device | s a step, at least | none overlaps | MFU at most | keys |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for changes, result in found:
        fit, time = making.fit(result), report.bound(result)
        seconds, mfu = ("-", "-"), "-"
        if time:
            seconds = f"{time.least:.3f}", f"{time.most:.3f}"
            mfu = f"{report.speed(result, time.least).mfu:.0%}"
        lines.append(
            f"| {'no' if fit.fits is False else 'yes'} | {fit.used / 1e9:.2f} | {seconds[0]} | {seconds[1]} | {mfu} | "
            f"{lines_of(changes)} |"
        )
    best, result = found[0]
    if making.fit(result).fits is False:
        return "\n".join([*lines, "", "none of them fits"])
    pasted = [f"    c.{key} = {json.dumps(value)}" for key, value in best.items()]
    return "\n".join([*lines, "", "the first of them, for get_config():", *pasted])


def _devices(name: str) -> int:
    target = topology.parse(name)
    return target.number * roofline.DEVICES[target.device].per_chip

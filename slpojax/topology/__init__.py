"""Devices that are not there: a grid of them to compile for, and the collectives of what was compiled.

Knows how JAX's compilers are asked for absent devices; `slpojax.topology.hlo` reads the text of a compiled program.
Knows no model and no step.
"""

import importlib.metadata
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies

from slpojax import grid, roofline, wording
from slpojax.grid import Grid
from slpojax.topology.hlo import Collective, axes, collectives, table

__all__ = [
    "Collective",
    "Target",
    "axes",
    "collectives",
    "kernel",
    "make",
    "names",
    "parse",
    "platform",
    "prepare",
    "table",
    "versions",
]

# What XLA asks of a GPU that is not there (a protocol buffer of its own, as text); sizes are those of the data sheets.
_HOPPER = """
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
_ON_A_HOST = 8  # GPUs
_SLICES = 64  # of one program

# Devices by what they are called in names of slices -> by what the compiler calls them, and the devices of a chip that
# Google's names count: those of v4, v5p and TPU7x count TensorCores, two a chip.
_TPUS: Mapping[str, tuple[str, int]] = {
    "v4": ("v4", 2),
    "v5e": ("v5e", 1),
    "v5litepod": ("v5e", 1),
    "v5p": ("v5", 2),
    "v5": ("v5", 2),
    "v6e": ("v6e", 1),
    "tpu7x": ("tpu7x", 2),
}
_ALIASES = {"v5litepod": "v5e", "v5": "v5p"}
# Chips -> how they lie (cloud.google.com/tpu/docs, the pages of each version). Others are asked for by their sides.
_SQUARES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
_CUBES |= {1024: "8x8x16", 2048: "8x16x16", 4096: "16x16x16"}


class Target(NamedTuple):
    """Devices that are not there.

    Attributes:
        name: as they were asked for, "v5p-128".
        device: one of `roofline.DEVICES`.
        compiler: what the compiler calls them, "v5:4x4x4".
        chips: along each side of a slice; () for GPUs.
        number: chips or GPUs that are used: all, but for slices smaller than the compiler knows.
        slices: how many there are, joined by a network.
    """

    name: str
    device: str
    compiler: str
    chips: tuple[int, ...]
    number: int
    slices: int = 1


def parse(topology: str) -> Target:
    """Return the devices that a name stands for.

    Args:
        topology: TPUs by the name of a slice, "v5e-16", "v5p-128" (two TensorCores a chip), "tpu7x-8", or by its sides,
            "v5e:4x4", "v5p:4x4x4"; several slices alike as "2xv5e-256"; GPUs of one host as "h200:8".

    Raises:
        ValueError: there is no such slice; says what is near.

    Example:
        >>> parse("v5p-128").compiler, parse("v5e:4x4").number, parse("h200:8").device
        ('v5:4x4x4', 16, 'h200')
    """
    asked = str(topology).strip().lower()
    if several := re.fullmatch(r"(\d+)x([a-z].*)", asked):
        return _several(topology, int(several[1]), parse(several[2]))
    parted = re.fullmatch(r"(\w+)(?:[:-]([0-9x]+))?", asked)
    kind, size = parted.groups("") if parted else (asked, "")
    if kind in roofline.DEVICES and kind not in _TPUS:
        number = int(size) if (size or "1").isdecimal() and size else 1
        if (size and not size.isdecimal()) or not 1 <= number <= _ON_A_HOST:
            raise ValueError(
                f"topology {wording.shown(topology)}: expected the GPUs of one host, {kind}:1 to {kind}:{_ON_A_HOST}"
            )
        return Target(topology, kind, kind, (), number)
    if kind not in _TPUS:
        raise wording.unknown("topology", topology, names(), also="a slice by its sides, as v5e:4x4 or v5p:4x4x4")
    compiler, cores = _TPUS[kind]
    device = _ALIASES.get(kind, kind)
    by_chips = _CUBES if roofline.DEVICES[device].torus == 3 else _SQUARES
    if "x" not in size:
        there = {chips * cores: sides for chips, sides in by_chips.items()}
        if not size or int(size) not in there:
            raise wording.unknown("topology", topology, [f"{kind}-{count}" for count in there], also=_sides(device))
        size = there[int(size)]
    chips = tuple(int(side) for side in size.split("x") if side)
    if len(chips) != roofline.DEVICES[device].torus or min(chips) < 1:
        raise ValueError(f"topology {wording.shown(topology)}: expected {_sides(device)}")
    # The compiler knows hosts of four chips; of a smaller slice it is asked for those, and the first ones are used.
    whole = f"{compiler}:{'2x2' if chips == (1, 1) else size}"
    return Target(topology, device, whole, chips, int(np.prod(chips)))


def _several(topology: str, slices: int, one: Target) -> Target:
    if not 2 <= slices <= _SLICES or not one.chips or one.chips == (1, 1):
        raise ValueError(
            f"topology {wording.shown(topology)}: expected 2 to {_SLICES} slices of TPUs that are whole hosts, as "
            "2xv5e-256"
        )
    return one._replace(name=topology, number=slices * one.number, slices=slices)


def _sides(device: str) -> str:
    return f"a slice by its sides, as {device}:{'4x4x4' if roofline.DEVICES[device].torus == 3 else '4x4'}"


def names() -> list[str]:
    """Return the names of slices, and of GPUs, that `parse` knows."""
    found = []
    for kind, device in roofline.DEVICES.items():
        if kind in _TPUS:
            found += [f"{kind}-{chips * _TPUS[kind][1]}" for chips in (_CUBES if device.torus == 3 else _SQUARES)]
        else:
            found += [f"{kind}:{count}" for count in (1, 2, 4, 8)]
    return found


def prepare(topology: str) -> tuple[str, ...]:
    """Keep JAX off the devices of this machine; call it before anything is computed.

    Args:
        topology: as `parse` reads it. TPUs need libtpu (`pip install "jax[tpu]"`), GPUs the CUDA plugin and cuDNN (`pip
            install "jax[cuda13]"`). "" is this machine, for which nothing is changed.

    Returns:
        The packages that compile for it, beside JAX's own.
    """
    if not topology:
        return ()
    jax.config.update("jax_platforms", "cpu")
    if platform(topology) == "tpu":
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no TPU to share
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")  # else libtpu complains that it finds none
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")  # whichever: it compiles for what is asked for
        return ("libtpu",)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"  # nothing to try it on
    return "jax-cuda13-plugin", "nvidia-cudnn-cu13"


def versions(topology: str) -> str:
    """Return JAX's version, and that of the compiler for a topology, which may lie beside the environment.

    Args:
        topology: as `parse` reads it; "" for this machine.
    """
    found = [f"jax {jax.__version__}", f"jaxlib {importlib.metadata.version('jaxlib')}"]
    of = {"tpu": "libtpu", "gpu": "jax-cuda13-plugin"}.get(platform(topology), "")
    if not of:
        return ", ".join(found)
    try:
        return ", ".join([*found, f"{of} {importlib.metadata.version(of)}"])
    except importlib.metadata.PackageNotFoundError:
        library = pathlib.Path(os.environ.get("TPU_LIBRARY_PATH", ""))
        named = [path.name.removesuffix(".dist-info") for path in library.parent.parent.glob(f"{of}-*.dist-info")]
        size = [f"{of} of {library.stat().st_size:,} bytes"] if of == "libtpu" and library.is_file() else []
        return ", ".join([*found, *(named or size or [f"no {of}"])])


def platform(topology: str) -> str:
    """Return "tpu" or "gpu", or "cpu" for "", this machine's processor."""
    return ("tpu" if parse(topology).chips else "gpu") if topology else "cpu"


def kernel(topology: str) -> str:
    """Return the implementation of attention (`model.attention`) that is made for a topology; "" is this processor."""
    return {"tpu": "splash", "gpu": "cudnn", "cpu": "tiles"}[platform(topology)]


def make(topology: str, **axes: int) -> Grid:
    """Return a grid of devices that are not there, after `prepare`.

    Args:
        topology: as `parse` reads it; "" for the devices of this machine.
        **axes: sizes of data, fsdp and tensor; one may be -1, all the devices that are left.

    Raises:
        RuntimeError: the compiler for these devices is not installed, or it does not know them.
        ValueError: there are no such devices, or the axes do not fill them.
    """
    if not topology:
        return grid.make(**axes, devices=None)
    target = parse(topology)
    if target.chips:
        options: dict[str, Any] = {"num_slices": target.slices} if target.slices > 1 else {}
        options |= {"chip_config_name": "megacore"} if target.device == "v4" else {}  # the default of the others
        found = topologies.get_topology_desc(target.compiler, platform="tpu", **options).devices
    else:
        size, form = f"1x1x{target.number}", _HOPPER.format_map(_described(target.device))
        found = topologies.get_topology_desc(size, platform="cuda", topology=size, target_config=form).devices
    used = target.number * roofline.DEVICES[target.device].per_chip
    return grid.make(**axes, devices=list(found)[:used])


def _described(device: str) -> dict[str, str | int]:
    """Return what XLA asks of a GPU of this kind."""
    gpu = roofline.DEVICES[device]
    name = gpu.kinds[0].removeprefix("NVIDIA ")
    return {"name": name, "memory": int(gpu.memory), "bandwidth": int(gpu.bandwidth)}

"""Where arrays live: the mesh, the rule from a parameter's path to its partition, and the placing of batches.

Knows devices and paths; knows no model. The axis type is chosen here, once: every axis is `Auto`, the compiler's
partitioner, because the step is written for the global batch and never names an axis of the mesh.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from slpojax.base import Batch, Share

AXES = ("data", "fsdp", "tensor")
_ROWS = PartitionSpec(("data", "fsdp"))

Rules = Iterable[tuple[str, PartitionSpec]]


class Grid(NamedTuple):
    """A mesh, and what follows from it.

    Attributes:
        mesh: the devices, along the axes data, fsdp and tensor.
        rows: the sharding of arrays whose leading axis is a batch's rows.
        everywhere: the sharding of what every device holds.
        devices: over how many devices the rows are split.
        share: the rows of a batch that this process holds.
    """

    mesh: Mesh
    rows: NamedSharding
    everywhere: NamedSharding
    devices: int
    share: Share


def make(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: list | None = None) -> Grid:
    """Make a mesh, and return what follows from it.

    Args:
        data: devices over which only rows are split.
        fsdp: devices over which rows, parameters and optimiser state are split.
        tensor: devices over which the width of a layer is split.
        devices: all of `jax.devices()` where None.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    return of_mesh(make_mesh(data, fsdp, tensor, devices=devices))


def one_device(device: jax.Device | None = None) -> Grid:
    """Return the grid of one device, the first there is where None."""
    return make(1, 1, 1, devices=[device or jax.devices()[0]])


def of_mesh(mesh: Mesh) -> Grid:
    """Return what follows from a mesh of `make_mesh`."""
    return Grid(mesh, split_rows(mesh), replicated(mesh), batch_devices(mesh), _share(mesh))


def _share(mesh: Mesh) -> Share:
    """Return which of the parts of the rows, one for each device that they are split over, are this process's."""
    parts = batch_devices(mesh)
    where = split_rows(mesh).devices_indices_map((parts,))
    here = {where[device][0].start or 0 for device in mesh.local_devices}
    return Share(tuple(sorted(here)), parts)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: list | None = None) -> Mesh:
    """Make the mesh of axes data, fsdp and tensor.

    Args:
        data: devices over which only rows are split.
        fsdp: devices over which rows, parameters and optimiser state are split.
        tensor: devices over which the width of a layer is split.
        devices: all of `jax.devices()` where None.

    One of the sizes may be -1: all the devices that are left.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    known = int(np.prod([size for size in sizes if size != -1]))
    if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
        asked = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, (data, fsdp, tensor), strict=True))
        raise ValueError(
            f"{asked} does not fill {len(devices)} devices: expected sizes whose product is {len(devices)}, "
            "at most one of them -1 (all that are left)"
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def start(distributed: bool) -> None:
    """Join the other hosts of a run, before anything asks for a device; the launchers say where they are."""
    if distributed:
        jax.distributed.initialize()


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
    """The rows of an array are split as a batch's."""
    return NamedSharding(mesh, _ROWS)


def batch_devices(mesh: Mesh) -> int:
    """Over how many devices the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def path_name(path: tuple[Any, ...]) -> str:
    """Join a pytree path with '/': `params/layers/attention/qkv/kernel`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def tree(mesh: Mesh, rules: Rules, shapes: Any) -> tuple[Any, list[str]]:
    """Give every leaf its sharding: that of the first rule whose expression is found in the leaf's path.

    A rule is held against the path and against every end of it that begins after a '/', so that the rule of a parameter
    also holds for its moments in the optimiser's state. An axis that does not divide its dimension is left out for that
    leaf, and a leaf of lower rank than its rule (the factored moments of Adafactor) is replicated; both are told.

    Args:
        mesh: see `make_mesh`.
        rules: (regular expression, PartitionSpec) pairs.
        shapes: a pytree whose leaves have a `.shape`: parameters, or a whole `State`.

    Returns:
        The pytree of `NamedSharding`, and a line for every leaf that is split less than its rule says.
    """
    compiled = [(re.compile(pattern), spec) for pattern, spec in rules]
    notes: list[str] = []

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        ends = [name[match.end() :] for match in re.finditer("^|/", name)]
        spec = next((spec for pattern, spec in compiled if any(map(pattern.search, ends))), PartitionSpec())
        if len(spec) > len(leaf.shape):
            if any(_size(mesh, axes) > 1 for axes in spec):
                notes.append(f"{name} {leaf.shape}: replicated, its rule {spec} has more dimensions")
            return replicated(mesh)
        kept = []
        for dimension, axes in zip(leaf.shape, spec, strict=False):
            fits = dimension % _size(mesh, axes) == 0
            kept.append(axes if fits else None)
            if not fits:
                notes.append(f"{name} {leaf.shape}: {dimension} is not split over {axes} ({_size(mesh, axes)} devices)")
        return NamedSharding(mesh, PartitionSpec(*kept))

    return jax.tree_util.tree_map_with_path(one, shapes), notes


def put(x: np.ndarray, where: NamedSharding) -> jax.Array:
    """Place an array that every host has whole; each device gets its part, and nothing is compared between hosts."""
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])


def put_batch(grid: Grid, batch: Batch) -> Batch:
    """Place a host's part of a batch: its share of the rows over data and fsdp, the small arrays on every device."""

    def rows(x: np.ndarray) -> jax.Array:
        parts, of = grid.share
        whole = (x.shape[0] // len(parts) * of, *x.shape[1:])
        return jax.make_array_from_process_local_data(grid.rows, x, whole)

    def whole(x: np.ndarray) -> jax.Array:
        return put(x, grid.everywhere)

    split = jax.tree.map(rows, (batch.rows, batch.scored))
    return Batch(*split, *jax.tree.map(whole, batch[2:]))


def gather(x: Any) -> Any:
    """Bring replicated device arrays to the host as NumPy arrays."""
    return jax.tree.map(np.asarray, x)


def gathered(items: Iterable[Any]) -> Iterator[Any]:
    """Bring each item to the host once the next one has been asked for: devices compute that while this is fetched."""
    held = []
    for item in items:
        held.append(item)
        if len(held) > 1:
            yield gather(held.pop(0))
    yield from map(gather, held)


def _size(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
    names = () if axes is None else (axes,) if isinstance(axes, str) else axes
    return int(np.prod([mesh.shape[name] for name in names]))

"""Where arrays live: the mesh, the rule from a parameter's path to its partition, and the placing of batches.

Knows devices and paths; knows no model. The axis type is chosen here, once: every axis is `Auto`, the compiler's
partitioner, because the step is written for the global batch. What the step asks of the compiler beyond that, and what
it divides by hand, is here, too.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from slpojax.base import Array, Batch, Float, Int, Share

AXES = ("data", "fsdp", "tensor")
_ROUNDS = ("fsdp_outer", "fsdp_inner")

Rules = Iterable[tuple[str, PartitionSpec]]


class Grid(NamedTuple):
    """A mesh, and what follows from it.

    Attributes:
        mesh: the devices, along the axes data, fsdp and tensor.
        rows: the sharding of arrays whose leading axis is a batch's rows.
        everywhere: the sharding of what every device holds.
        devices: over how many devices the rows are split.
        share: the rows of a batch that this process holds.
        rounds: the same devices with fsdp as two axes, for `scattered`; None where one round will do.
    """

    mesh: Mesh
    rows: NamedSharding
    everywhere: NamedSharding
    devices: int
    share: Share
    rounds: Mesh | None = None


def make(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: list | None = None) -> Grid:
    """Make a mesh, and return what follows from it.

    Args:
        data: devices over which only rows are split; a multiple of the slices where there are several.
        fsdp: devices over which rows, parameters and optimiser state are split.
        tensor: devices over which the width of a layer is split.
        devices: all of `jax.devices()` where None.

    One of the sizes may be -1: all the devices that are left.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, or data is no multiple of the slices.
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
    mesh = _mesh(sizes, devices)
    rows, split = NamedSharding(mesh, PartitionSpec(("data", "fsdp"))), sizes[0] * sizes[1]
    where = rows.devices_indices_map((split,))
    here = {where[device][0].start or 0 for device in mesh.local_devices}
    # XLA for TPUs sums over all chips of a square or cubic torus and then cuts, which sends twice as much.
    torus = devices[0].platform == "tpu" and sizes[1] >= 16 and sizes[0] == 1
    return Grid(
        mesh=mesh,
        rows=rows,
        everywhere=NamedSharding(mesh, PartitionSpec()),
        devices=split,
        share=Share(tuple(sorted(here)), split),
        rounds=in_rounds(mesh) if torus else None,
    )


def count_slices(devices: Sequence[Any]) -> int:
    """Return how many slices of TPUs, joined by a network, some devices are of; others are one."""
    return len({slice_of(device) for device in devices})


def slice_of(device: Any) -> int:
    """Return the number of the slice of TPUs that a device is of; 0 for others."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def _mesh(sizes: Sequence[int], devices: list) -> Mesh:
    """Return the mesh of devices, with `data` over their slices where TPUs come in several, joined by a network."""
    kinds = (AxisType.Auto,) * 3
    slices = count_slices(devices)
    if slices == 1:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=kinds, devices=devices)
    if sizes[0] % slices:
        raise ValueError(
            f"mesh.data={sizes[0]} is not divisible by {slices} slices: weights are split within a slice, and repeated "
            f"over slices; set --config.mesh.data={slices} and --config.mesh.fsdp=-1"
        )
    within: dict[int, list] = {}
    for device in devices:
        within.setdefault(slice_of(device), []).append(device)
    shape = (sizes[0] // slices, *sizes[1:])
    ordered = [create_device_mesh(shape, within[n], allow_split_physical_axes=True) for n in sorted(within)]
    return Mesh(np.concatenate(ordered), AXES, axis_types=kinds)


def one_device(device: jax.Device | None = None) -> Grid:
    """Return the grid of one device, the first there is where None."""
    return make(1, 1, 1, devices=[device or jax.devices()[0]])


# ---- said in traced functions ----------------------------------------------------------------------------------------


def sum_over_data(function: Callable[..., Any], grid: Grid) -> Callable[..., Any]:
    """Let every slice of the mesh along `data` apply a function to its own rows, and sum what comes out.

    Args:
        function: (what every slice has, arrays whose leading axis is rows, or groups of rows) -> arrays; it reads no
            other arrays.
        grid: the devices; fsdp and tensor stay the compiler's.
    """
    if grid.mesh.shape["data"] == 1:
        return function

    def of_slice(whole: Any, rows: Any) -> Any:
        return jax.lax.psum(function(whole, rows), "data")

    specs = PartitionSpec(), PartitionSpec("data")
    return jax.shard_map(
        of_slice, mesh=grid.mesh, in_specs=specs, out_specs=specs[0], axis_names={"data"}, check_vma=False
    )


def row_devices(grid: Grid) -> int:
    """Over how many devices the rows are split of which a traced function sees all: one slice's, in `sum_over_data`."""
    return int(np.prod([grid.mesh.shape[axis] for axis in ("data", "fsdp") if axis not in _by_hand()]))


def constrain(x: Any, where: NamedSharding) -> Any:
    """Ask the compiler to split arrays so; inside of `sum_over_data`, too."""
    return jax.lax.with_sharding_constraint(x, _spec_here(where) if _by_hand() else where)


def by_rows(x: Array, grid: Grid | None) -> Array:
    """Keep an array split by rows, where the devices divide them.

    Left to itself a compiler may split hidden states by width, as the weights are, and send activations around instead
    of weights.
    """
    return x if grid is None or x.shape[0] % row_devices(grid) else constrain(x, grid.rows)


def lookup(
    table: Float[Array, "V D"], index: Int[Array, "R *rest"], dtype: Any, grid: Grid | None
) -> Float[Array, "R *rest D"]:
    """Return the rows `table[index]` of a table whose columns are split over fsdp, cast to `dtype`.

    Each device looks up its columns of all rows, and so adds to its columns of the gradient: the rows are exchanged, as
    many as there are tokens, in place of the table and of a gradient as large as the table.

    Args:
        table: split over tensor and fsdp.
        index: split by rows.
        dtype: of the result.
        grid: the devices; None for one.
    """
    columns = grid.mesh.shape["fsdp"] if grid else 1
    if grid is None or columns == 1 or table.shape[1] % columns or index.shape[0] % row_devices(grid):
        return jnp.asarray(table)[index].astype(dtype)
    by_columns = PartitionSpec("data", *[None] * (index.ndim - 1), "fsdp")
    index = constrain(index, NamedSharding(grid.mesh, PartitionSpec("data")))
    found = constrain(jnp.asarray(table)[index].astype(dtype), NamedSharding(grid.mesh, by_columns))
    return by_rows(found, grid)


def scatter(x: Array, spec: PartitionSpec, grid: Grid | None) -> Array:
    """Ask for an array that is summed over fsdp to be split over it, in the rounds of a grid that has them."""
    if grid is None or grid.rounds is None or _by_hand():
        return x
    first = PartitionSpec(*(_ROUNDS[0] if axes == "fsdp" else axes for axes in spec))
    x = jax.lax.with_sharding_constraint(x, NamedSharding(grid.rounds, first))
    return jax.lax.with_sharding_constraint(x, NamedSharding(grid.mesh, spec))


def scattered(x: Array, spec: PartitionSpec, grid: Grid | None) -> Array:
    """Return a parameter, split as `spec`, whose gradient is scattered by `scatter`."""
    if grid is None or grid.rounds is None or "fsdp" not in spec:
        return x
    identity = jax.custom_vjp(lambda x: x)
    identity.defvjp(lambda x: (x, None), lambda _, slope: (scatter(slope, spec, grid),))
    return identity(x)


def in_rounds(mesh: Mesh) -> Mesh:
    """Return a mesh with fsdp as two axes, of sizes as near to each other as they can be."""
    fsdp = mesh.shape["fsdp"]
    outer = next(size for size in range(int(fsdp**0.5), 0, -1) if fsdp % size == 0)
    sizes = (mesh.shape["data"], outer, fsdp // outer, mesh.shape["tensor"])
    return Mesh(mesh.devices.reshape(sizes), ("data", *_ROUNDS, "tensor"), axis_types=(AxisType.Auto,) * 4)


def on_each(
    function: Callable[..., Array], grid: Grid, inputs: tuple[NamedSharding, ...], output: NamedSharding
) -> Callable[..., Array]:
    """Let every device apply a function to its parts of arrays, as a kernel wants it that no compiler can divide."""
    rest = set(AXES) - _by_hand()
    mesh = jax.sharding.get_abstract_mesh() if _by_hand() else grid.mesh
    specs = tuple(map(_spec_here, inputs))
    return jax.shard_map(
        function, mesh=mesh, in_specs=specs, out_specs=_spec_here(output), axis_names=rest, check_vma=False
    )


def _by_hand() -> frozenset[str]:
    """Return the axes of the mesh that the function which is being traced divides by itself, see `sum_over_data`."""
    return frozenset(jax.sharding.get_abstract_mesh().manual_axes)


def _spec_here(where: NamedSharding) -> PartitionSpec:
    """Return a sharding's partition without the axes that `sum_over_data` divides where it is traced in."""
    left = [tuple(axis for axis in _names(axes) if axis not in _by_hand()) for axes in where.spec]
    return PartitionSpec(*(axes or None for axes in left))


# ---- parameters ------------------------------------------------------------------------------------------------------


def path_name(path: tuple[Any, ...]) -> str:
    """Join a pytree path with '/': `params/layers/attention/qkv/kernel`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def tree(grid: Grid, rules: Rules, shapes: Any) -> tuple[Any, list[str]]:
    """Give every leaf its sharding: that of the first rule whose expression is found in the leaf's path.

    A rule is held against the path and against every end of it that begins after a '/', so that the rule of a parameter
    also holds for its moments in the optimiser's state. An axis that does not divide its dimension is left out for that
    leaf, and a leaf of lower rank than its rule (the factored moments of Adafactor) is replicated; both are noted.

    Args:
        grid: the devices.
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
            if any(_size(grid.mesh, axes) > 1 for axes in spec):
                notes.append(f"{name} {leaf.shape}: replicated, its rule {spec} has more dimensions")
            return grid.everywhere
        used = []
        for dimension, axes in zip(leaf.shape, spec, strict=False):
            fits = dimension % _size(grid.mesh, axes) == 0
            used.append(axes if fits else None)
            if not fits:
                notes.append(
                    f"{name} {leaf.shape}: {dimension} is not split over {axes} ({_size(grid.mesh, axes)} devices)"
                )
        return NamedSharding(grid.mesh, PartitionSpec(*used))

    return jax.tree_util.tree_map_with_path(one, shapes), notes


def placed(shapes: Any, where: Any) -> Any:
    """Return the shapes of a pytree with the places that its arrays will have: enough to compile, or to restore into.

    Args:
        shapes: leaves with a shape and a dtype, arrays or not.
        where: the sharding of each, as of `tree`.
    """
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)


def held(x: Any) -> int:
    """Return the bytes that each device holds of a pytree of arrays, or of their shapes with the places they will have.

    Args:
        x: arrays, or shapes; what says of no place lies whole on every device. Random keys count with their words, and
            codes of 4 bits as half a byte, which is how devices hold them.
    """

    def one(leaf: Any) -> int:
        where = getattr(leaf, "sharding", None)
        shape = where.shard_shape(leaf.shape) if where is not None else leaf.shape
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            of_one = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
            return math.prod(shape) * math.prod(of_one.shape) * of_one.dtype.itemsize
        return -(-math.prod(shape) * jax.dtypes.itemsize_bits(leaf.dtype) // 8)

    return sum(map(one, jax.tree.leaves(x)))


# ---- batches ---------------------------------------------------------------------------------------------------------


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
    return int(np.prod([mesh.shape[name] for name in _names(axes)]))


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else axes

"""Devices that are not there: a grid of them to compile for, and the collectives of what was compiled.

Knows how JAX's compilers are asked for absent devices, and the text of a compiled program; knows no model and no step.
"""

import importlib.metadata
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies

from slpojax import grid, roofline, wording
from slpojax.grid import Grid

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
        chips: along each side of the slice; () for GPUs.
        number: chips or GPUs that are used: all, but for slices smaller than the compiler knows.
    """

    name: str
    device: str
    compiler: str
    chips: tuple[int, ...]
    number: int


def parse(topology: str) -> Target:
    """Return the devices that a name stands for.

    Args:
        topology: TPUs by the name of a slice, "v5e-16", "v5p-128" (two TensorCores a chip), "tpu7x-8", or by its sides,
            "v5e:4x4", "v5p:4x4x4"; GPUs of one host as "h200:8".

    Raises:
        ValueError: there is no such slice, or there are several; says what is near.

    Example:
        >>> parse("v5p-128").compiler, parse("v5e:4x4").number, parse("h200:8").device
        ('v5:4x4x4', 16, 'h200')
    """
    asked = str(topology).strip().lower()
    if re.match(r"\d+ ?[x*] ?[a-z]", asked) or re.search(r"\*\d+$", asked):
        raise ValueError(
            f"topology {wording.shown(topology)}: several slices, over which neither a run's mesh nor a plan divides "
            "today; give one slice"
        )
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
        one_a_chip = {"chip_config_name": "megacore"} if target.device == "v4" else {}  # the default of the others
        found = topologies.get_topology_desc(target.compiler, platform="tpu", **one_a_chip).devices
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


# ---- the collectives of a compiled program ---------------------------------------------------------------------------


class Collective(NamedTuple):
    """A collective of a compiled program.

    Attributes:
        kind: all-reduce, reduce-scatter, all-gather, all-to-all or collective-permute.
        size: bytes of the whole, as a device holds it: what a reduction takes in, what a gathering gives.
        devices: how many take part together; 2 for a collective-permute.
        times: how often the program runs it.
        name: of the operation in JAX that it comes from, as far as the compiler kept it.
        group: numbers of the devices of the first group that takes part, by their places in the mesh.
    """

    kind: str
    size: int
    devices: int
    times: int
    name: str
    group: tuple[int, ...] = ()

    @property
    def sent(self) -> float:
        """The bytes that each device sends, all times together, in a ring."""
        rounds = 2 if self.kind == "all-reduce" else 1
        part = 1.0 if self.kind == "collective-permute" else 1 - 1 / self.devices
        return self.times * self.size * rounds * part


_KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(rf"(?P<kind>{'|'.join(_KINDS)})(?P<start>-start)?\(")
_TYPE = re.compile(r"(\w+)\[([\d,]*)\]")
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # of the others their names tell: f32, s4, f8e4m3fn
# The names that a TPU's compiler gives: to a fusion that reduces and keeps a part, and to those among which it divides
# a collective that runs beside other work; the first of them counts.
_SCATTERS, _CONTINUES, _ENDS = "all-reduce-scatter", "async_collective_fusion", "async-collective-done"


def collectives(text: str) -> tuple[Collective, ...]:
    """Read the collectives off a compiled program, the largest traffic first.

    A loop's body counts as often as the loop runs, each branch of a conditional as if it were taken, and what starts
    and ends apart counts once.

    Args:
        text: of `jax.stages.Compiled.as_text()`.

    Raises:
        ValueError: the text has no entry, or a loop or a group of devices is written in a way that is not known.
    """
    bodies = dict(_computations(text))
    if "ENTRY" not in bodies:
        raise ValueError("no ENTRY in the text: expected what `jax.jit(f).lower(...).compile().as_text()` returns")
    devices = int(_search(r"num_partitions=(\d+)", text, "1")) * int(_search(r"replica_count=(\d+)", text, "1"))
    return tuple(sorted(_walk(bodies, "ENTRY", 1, devices), key=lambda c: -c.sent))


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every computation's name ("ENTRY" for the program's) and its lines; a kernel's notes may take several."""
    for match in re.finditer(r"^(ENTRY )?%?([^\s(]+) [^\n]*\{\n(.*?)^\}(?:,|$)", text, flags=re.MULTILINE | re.DOTALL):
        yield "ENTRY" if match[1] else match[2], match[3].splitlines()


def _walk(bodies: dict[str, list[str]], computation: str, times: int, devices: int) -> Iterator[Collective]:
    for line in bodies[computation]:
        name, _, right = line.strip().removeprefix("ROOT ").partition(" = ")
        match = _COLLECTIVE.search(right.partition("metadata=")[0])
        if match:
            kind = "reduce-scatter" if computation.startswith(_SCATTERS) else match["kind"]
            size = _size(right[: match.start()], match)
            group = _group(right, match["kind"], devices)
            size *= len(group) if match["kind"] == "reduce-scatter" else 1  # its result is a part
            yield Collective(kind, size, len(group), times, _search(r'op_name="([^"]*)"', right, ""), group)
        elif not name.startswith(f"%{_ENDS}"):
            inside = [
                found
                for called in _called(right)
                if not called.startswith(_CONTINUES)
                for found in _walk(bodies, called, times, devices)
            ]
            # How often a loop runs may depend on the data: that of a loop without a collective does not matter.
            again = _trips(right, bodies) if inside and " while(" in right else 1
            yield from (found._replace(times=found.times * again) for found in inside)


def _called(instruction: str) -> list[str]:
    """Return the computations that an instruction runs, but for the operators of reductions."""
    roles = "calls|body|true_computation|false_computation" + ("|to_apply" if " call(" in instruction else "")
    called = re.findall(rf"\b(?:{roles})=%?([^\s,]+)", instruction)
    for group in re.findall(r"(?:branch_computations|called_computations)=\{([^}]*)\}", instruction):
        called += [name.strip().removeprefix("%") for name in group.split(",")]
    return called


def _trips(instruction: str, bodies: dict[str, list[str]]) -> int:
    """Return how often a loop runs: what the compiler notes, or else what its counter has to go through."""
    known = _search(r'"known_trip_count":\{"n":"(\d+)"', instruction, "")
    if known:
        return int(known)
    condition = "\n".join(bodies[_search(r"condition=%?([^\s,]+)", instruction)])
    constants = _constants(condition)
    compared = re.findall(r" compare\(([^)]*)\), direction=LT", condition)
    bounds = {constants[name] for pair in compared for name in pair.split(", ") if name in constants}
    if len(bounds) != 1:
        raise ValueError(f"cannot tell how often a loop runs: expected one comparison with a constant in\n{condition}")
    return -(-bounds.pop() // _stride(condition, "\n".join(bodies[_search(r"body=%?([^\s,]+)", instruction)])))


def _stride(condition: str, body: str) -> int:
    """Return by how much a loop's counter grows in a round: 2 where the compiler made one round of two."""
    places = dict(re.findall(r"(%\S+) = [su]\d+\[\]\S* get-tuple-element\([^)]*\), index=(\d+)", condition))
    place = next(
        (int(places[name]) for name in re.findall(r"%[\w.-]+", condition.partition(" compare(")[2]) if name in places),
        None,
    )
    result = re.search(r"ROOT .* tuple\((.*?)\)(?:,|$)", body, flags=re.MULTILINE)
    if place is None or result is None:
        return 1
    counter = re.findall(r"%[\w.-]+", result[1])[place]
    added = _search(rf"{re.escape(counter)} = .* add\(([^)]*)\)", body, "").split(", ")
    constants = _constants(body)
    return next((constants[name] for name in added if name in constants), 1)


def _constants(computation: str) -> dict[str, int]:
    """Return the whole numbers among a computation's constants, by name."""
    found = re.findall(r"(%\S+) = [su]\d+\[\]\S* constant\((\d+)\)", computation)
    return {name: int(value) for name, value in found}


def _size(result: str, match: re.Match) -> int:
    """Return the bytes of a result, of which a start that also hands its operands on names those first."""
    found = [(kind, shape) for kind, shape in _TYPE.findall(result) if kind in _BITS or re.match(r"[suf]\d", kind)]
    if match["start"]:
        if match["kind"] == "collective-permute":
            found = found[1:2]
        elif match["kind"] != "all-reduce":
            found = found[len(found) // 2 :]
    return sum(_bits(kind) * int(np.prod([int(n) for n in shape.split(",") if n])) for kind, shape in found) // 8


def _bits(kind: str) -> int:
    return _BITS.get(kind) or int(_search(r"[suf](\d+)", kind))


def _group(instruction: str, kind: str, devices: int) -> tuple[int, ...]:
    """Return the devices of the first group that takes part, from any of the ways in which XLA writes groups."""
    if kind == "collective-permute":
        pairs = re.findall(r"\{(\d+),(\d+)\}", instruction.partition("source_target_pairs=")[2])
        return next(((int(a), int(b)) for a, b in pairs if a != b), (0, 0))
    groups = _search(r"replica_groups=(.*)", instruction, "")
    if not groups or groups.startswith("{}"):
        return tuple(range(devices))
    if groups.startswith("{{"):  # lists of devices
        return tuple(int(device) for device in groups[2 : groups.index("}")].split(","))
    if groups.startswith("["):
        return tuple(_numbers(groups)[0].tolist())
    if groups.startswith("mesh["):
        return _along(groups)
    raise ValueError(f"a group of devices in an unknown form: {groups[:80]}")


def _numbers(text: str) -> np.ndarray:
    """Return the numbers of `[groups, size]<=[numbers in order]T(how their axes are exchanged)`.

    Where there is no shape in front of the arrow, and no arrow, they come in one row.
    """
    found = re.match(r"(?:\[([\d,]+)\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if found is None:
        raise ValueError(f"a group of devices in an unknown form: {text[:80]}")
    shape, sizes, exchanged = ([int(n) for n in part.split(",")] if part else [] for part in found.groups())
    ordered = np.arange(np.prod(sizes)).reshape(sizes)
    return ordered.transpose(exchanged or range(len(sizes))).reshape(shape or -1)


def _along(text: str) -> tuple[int, ...]:
    """Return the first group of `mesh[axes and their sizes], device_ids=(...) {the axes that a group lies along}`.

    It may lie along a part of an axis: `'a':(2)4` is the part of size 4 behind one of size 2.
    """
    sizes = {name: int(size) for name, size in re.findall(r"('[^']+')=(\d+)", text.partition("]")[0])}
    along = re.findall(r"('[^']+')(?::\((\d+)\)(\d+))?", _search(r"[^=]\{('[^}]*)\}", text, ""))
    parts = {name: (int(before or 1), int(part or sizes[name])) for name, before, part in along}
    listed = _search(r"device_ids=\(([\d,]+)\)", text, "")
    ordered = _search(r"device_ids=\(?(\[[^)]*\](?:T\([\d,]+\))?)", text, "")
    numbers = np.arange(np.prod(list(sizes.values())))
    if listed:
        numbers = np.array([int(n) for n in listed.split(",")])
    elif ordered:
        numbers = _numbers(ordered)
    shape: list[int] = []
    taken: list[slice | int] = []
    for name, size in sizes.items():
        before, part = parts.get(name, (1, 1))
        shape += [before, part, size // (before * part)]
        taken += [0, slice(None), 0]
    return tuple(numbers.reshape(shape)[tuple(taken)].ravel().tolist())


def axes(sizes: Mapping[str, int], group: Sequence[int]) -> tuple[str, ...]:
    """Return the axes of a mesh that a group of its devices lies along.

    Args:
        sizes: of the mesh, by axis, the outer ones first.
        group: numbers of the devices, by their places in the mesh.

    Example:
        >>> axes({"data": 2, "fsdp": 4}, (0, 1, 2, 3)), axes({"data": 2, "fsdp": 4}, (1, 5))
        (('fsdp',), ('data',))
    """
    places = np.unravel_index(np.asarray(group), tuple(sizes.values()))
    return tuple(name for name, place in zip(sizes, places, strict=True) if len(set(place.tolist())) > 1)


def _search(pattern: str, text: str, default: str | None = None) -> str:
    found = re.search(pattern, text)
    if found is None and default is None:
        raise ValueError(f"expected {pattern} in {text[:200]}")
    return found[1] if found else default or ""


def table(found: Iterable[Collective]) -> list[str]:
    """Return the lines of a Markdown table, one for each collective."""
    lines = ["| collective | devices | times | MB of one | MB sent | operation |", "|---|---|---|---|---|---|"]
    return lines + [
        f"| {c.kind} | {c.devices} | {c.times} | {c.size / 1e6:.3f} | {c.sent / 1e6:.3f} | {c.name} |" for c in found
    ]

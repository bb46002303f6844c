"""Devices that are not there: a grid of them to compile for, and the collectives of what was compiled.

Knows how JAX's compilers are asked for absent devices, and the text of a compiled program; knows no model and no step.
"""

import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies

from slpojax import grid
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
GPUS = {  # bytes, and bytes a second
    "h100": {"name": "H100 80GB HBM3", "memory": 80 * 2**30, "bandwidth": 3_352_000_000_000},
    "h200": {"name": "H200", "memory": 141 * 10**9, "bandwidth": 4_800_000_000_000},
}


def prepare(topology: str) -> tuple[str, ...]:
    """Keep JAX off the devices of this machine; call it before anything is computed.

    Args:
        topology: TPUs as "v5e:2x4", which needs libtpu (`pip install "jax[tpu]"`); or the GPUs of one host as "h200:8",
            which needs the CUDA plugin and cuDNN (`pip install "jax[cuda13]"`); "" for this machine, which changes
            nothing.

    Returns:
        The packages that compile for it, beside JAX's own.
    """
    if not topology:
        return ()
    jax.config.update("jax_platforms", "cpu")
    if platform(topology) == "tpu":
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no TPU to share
        return ("libtpu",)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"  # nothing to try it on
    return "jax-cuda13-plugin", "nvidia-cudnn-cu13"


def platform(topology: str) -> str:
    """Return "tpu" or "gpu", or "cpu" for "", this machine's processor."""
    return ("gpu" if topology.partition(":")[0] in GPUS else "tpu") if topology else "cpu"


def make(topology: str, **axes: int) -> Grid:
    """Return a grid of devices that are not there, after `prepare`.

    Args:
        topology: TPUs as "v5e:2x4", or the GPUs of one host as "h200:8".
        **axes: sizes of data, fsdp and tensor; one may be -1, all the devices that are left.

    Raises:
        RuntimeError: the compiler for these devices is not installed.
    """
    kind, _, number = topology.partition(":")
    if kind in GPUS:
        size, target = f"1x1x{number or 1}", _HOPPER.format_map(GPUS[kind])
        found = topologies.get_topology_desc(size, platform="cuda", topology=size, target_config=target)
    else:
        found = topologies.get_topology_desc(topology, platform="tpu")
    return grid.make(**axes, devices=list(found.devices))


# ---- the collectives of a compiled program ---------------------------------------------------------------------------


class Collective(NamedTuple):
    """A collective of a compiled program.

    Attributes:
        kind: all-reduce, reduce-scatter, all-gather, all-to-all or collective-permute.
        size: bytes of the whole, as a device holds it: what a reduction takes in, what a gathering gives.
        devices: how many take part together; 2 for a collective-permute.
        times: how often the program runs it.
        name: of the operation in JAX that it comes from, as far as the compiler kept it.
    """

    kind: str
    size: int
    devices: int
    times: int
    name: str

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
            size *= group if match["kind"] == "reduce-scatter" else 1  # its result is a part
            yield Collective(kind, size, group, times, _search(r'op_name="([^"]*)"', right, ""))
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


def _group(instruction: str, kind: str, devices: int) -> int:
    """Return how many devices take part together, from any of the ways in which XLA writes groups."""
    if kind == "collective-permute":
        return 2
    groups = _search(r"replica_groups=(.*)", instruction, "")
    if not groups or groups.startswith("{}"):
        return devices
    if groups.startswith("{{"):  # lists of devices
        return len(groups[2 : groups.index("}")].split(","))
    if groups.startswith("["):  # [groups, size]<=[numbers of devices in order, perhaps transposed]
        return int(_search(r"\[\d+,(\d+)\]<=", groups))
    if groups.startswith("mesh["):  # axes and their sizes, and which of them a group spans, perhaps in part
        sizes = {name: int(size) for name, size in re.findall(r"('[^']+')=(\d+)", groups.partition("]")[0])}
        spans = re.findall(r"('[^']+')(?::\(\d+\)(\d+))?", _search(r"[^=]\{('[^}]*)\}", groups, ""))
        return int(np.prod([int(part) if part else sizes[name] for name, part in spans]))
    raise ValueError(f"a group of devices in an unknown form: {groups[:80]}")


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

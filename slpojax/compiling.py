"""What a compiler says of a program before it runs: the memory that it takes, and what its devices send each other.

The devices need not be there. That a program does not fit is an answer, not an error. Knows programs and devices; knows
no model and no configuration.
"""

import re
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from slpojax import grid, roofline, topology
from slpojax.grid import Grid
from slpojax.roofline import Device

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Memory(NamedTuple):
    """The bytes that a program takes on each device, as the compiler lays them out.

    Attributes:
        arguments: what it is given.
        temporaries: what it has while it runs, and no longer.
        outputs: what it gives.
        aliased: of the outputs, what is written over donated arguments.
        host: temporaries in the host's memory.
    """

    arguments: int
    temporaries: int
    outputs: int
    aliased: int
    host: int

    @property
    def peak(self) -> int:
        """Arguments, temporaries, and what of the outputs is not written over the arguments."""
        return self.arguments + self.temporaries + self.outputs - self.aliased


class Excess(NamedTuple):
    """The compiler's word that a program does not fit.

    Attributes:
        used: bytes that it would take.
        room: bytes that there are.
    """

    used: float
    room: float


class Exchange(NamedTuple):
    """Collectives of one kind among devices that lie alike.

    Attributes:
        kind: all-reduce, reduce-scatter, all-gather, all-to-all or collective-permute.
        axes: of the mesh, that the devices of a group lie along.
        devices: of a group.
        times: how often such a collective runs in the program.
        sent: bytes that each device sends within its slice, all of them together, in a ring.
        spans: places that a group takes up along each side of a TPU slice; () elsewhere.
        together: devices of the same chip in a group.
        network: bytes that each device sends to other slices.
    """

    kind: str
    axes: tuple[str, ...]
    devices: int
    times: int
    sent: float
    spans: tuple[int, ...]
    together: int
    network: float = 0.0


class Compiled(NamedTuple):
    """What is known of a program once it was compiled.

    Attributes:
        memory: None where it does not fit.
        excess: by how much it does not; None where it fits.
        exchanges: the largest traffic first; none where it does not fit.
        seconds: that tracing and compilation took.
    """

    memory: Memory | None
    excess: Excess | None
    exchanges: tuple[Exchange, ...]
    seconds: float


def compile_for(devices: Grid, function: jax.stages.Wrapped, *like: Any, rounds: int | None = None) -> Compiled:
    """Compile a function, and return what the compiler says of it.

    Args:
        devices: that it is for.
        function: from `jax.jit`.
        *like: its arguments, or their shapes with the places where they lie.
        rounds: how often a loop counts whose end depends on the data; None refuses one that exchanges anything.

    Raises:
        JaxRuntimeError: the compiler fails for another reason than memory.
    """
    return said_of(devices, *attempt(function, *like), rounds=rounds)


def attempt(function: jax.stages.Wrapped, *like: Any) -> tuple[jax.stages.Compiled | Excess, float]:
    """Compile a function; return the program, or by how much it does not fit, and the seconds that it took.

    Args:
        function: from `jax.jit`.
        *like: its arguments, or their shapes with the places where they lie.

    Raises:
        JaxRuntimeError: the compiler fails for another reason than memory.
    """
    begun = time.perf_counter()
    try:
        found: jax.stages.Compiled | Excess = function.lower(*like).compile()
    except jax.errors.JaxRuntimeError as error:
        excess = does_not_fit(str(error))
        if excess is None:
            raise
        found = excess
    return found, time.perf_counter() - begun


def said_of(
    devices: Grid, program: jax.stages.Compiled | Excess, seconds: float, rounds: int | None = None
) -> Compiled:
    """Return what the compiler says of a program.

    Args:
        devices: that it is for.
        program: from `attempt`.
        seconds: that it took.
        rounds: as `compile_for` takes it.
    """
    if isinstance(program, Excess):
        return Compiled(None, program, (), seconds)
    found, text = program.memory_analysis(), program.as_text()
    assert found is not None and text is not None, "the compilers of CPUs, GPUs and TPUs say both"
    memory = Memory(
        int(found.argument_size_in_bytes),
        int(found.temp_size_in_bytes),
        int(found.output_size_in_bytes),
        int(found.alias_size_in_bytes),
        int(found.host_temp_size_in_bytes),
    )
    slices = grid.count_slices([*devices.mesh.devices.flat])
    sent = topology.collectives(text, rounds, slices) if devices.mesh.size > 1 else ()
    return Compiled(memory, None, exchanges(devices, sent), seconds)


def does_not_fit(message: str) -> Excess | None:
    """Return what a compiler's error says of memory; None where it speaks of something else.

    Example:
        >>> does_not_fit("RESOURCE_EXHAUSTED: Allocation (size=300) would exceed memory (size=200) :: ...")
        Excess(used=300.0, room=200.0)
        >>> does_not_fit("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 31.50G of 15.75G hbm.")
        Excess(used=33822867456.0, room=16911433728.0)
    """
    if one := re.search(r"Allocation \(size=(\d+)\) would exceed memory \(size=(\d+)\)", message):
        return Excess(float(one[1]), float(one[2]))  # of a single array
    found = re.search(r"Used ([\d.]+)([BKMGT]?) of ([\d.]+)([BKMGT]?) hbm", message)
    if found is None:
        return None
    used, unit, room, unit_of_room = found.groups()
    return Excess(float(used) * _UNITS[unit], float(room) * _UNITS[unit_of_room])


def exchanges(devices: Grid, found: Iterable[topology.Collective]) -> tuple[Exchange, ...]:
    """Gather collectives by their kind and the devices that take part, the largest traffic first.

    Args:
        devices: of the program.
        found: its collectives.
    """
    sizes = {name: int(size) for name, size in devices.mesh.shape.items()}
    alike: dict[Any, tuple[int, float, float]] = {}
    for one in found:
        if one.devices < 2:
            continue
        key = one.kind, topology.axes(sizes, one.group), one.devices, *_spread(devices, one.group)
        times, sent, network = alike.get(key, (0, 0.0, 0.0))
        within, between = (0.0, one.sent) if one.between else (one.sent, 0.0)
        alike[key] = times + one.times, sent + within, network + between
    made = [
        Exchange(kind, axes, count, times, sent, spans, together, network)
        for (kind, axes, count, spans, together), (times, sent, network) in alike.items()
    ]
    return tuple(sorted(made, key=lambda exchange: -exchange.sent - exchange.network))


def _spread(devices: Grid, group: Iterable[int]) -> tuple[tuple[int, ...], int]:
    """Return the places that devices take up along each side of their slice, and how many are of the same chip."""
    flat = devices.mesh.devices.flat
    places = [tuple(getattr(flat[number], "coords", None) or ()) for number in group]
    spans = tuple(len(set(along)) for along in zip(*places, strict=True))
    return spans, len(places) // max(1, len(set(places))) if spans else 1


def seconds_of_links(device: Device, chips: tuple[int, ...], found: Iterable[Exchange]) -> list[float]:
    """Return the seconds that each exchange takes at least, at the full rate of the links between its devices.

    Args:
        device: one of `roofline.DEVICES`.
        chips: of the slice, along each side; () for GPUs.
        found: of `Compiled.exchanges`.
    """
    return [one.sent / roofline.rate(device, chips, one.spans[: len(chips)], one.together) for one in found]


def seconds_of_network(device: Device, found: Iterable[Exchange]) -> float:
    """Return the seconds that exchanges take at least between slices, one after the other at the network's full rate.

    Args:
        device: one of `roofline.DEVICES`.
        found: of `Compiled.exchanges`.
    """
    sent = sum(one.network for one in found)
    return sent * device.per_chip / device.network if sent else 0.0


def as_json(compiled: Compiled) -> dict[str, Any]:
    """Return what `from_json` reads back."""
    return {
        "memory": compiled.memory and list(compiled.memory),
        "excess": compiled.excess and list(compiled.excess),
        "exchanges": [list(one) for one in compiled.exchanges],
        "seconds": compiled.seconds,
    }


def from_json(content: dict[str, Any]) -> Compiled:
    """Return what `as_json` wrote."""
    return Compiled(
        memory=Memory(*content["memory"]) if content["memory"] else None,
        excess=Excess(*content["excess"]) if content["excess"] else None,
        exchanges=tuple(
            Exchange(kind, tuple(axes), devices, times, sent, tuple(spans), *rest)
            for kind, axes, devices, times, sent, spans, *rest in content["exchanges"]
        ),
        seconds=content["seconds"],
    )


__all__ = [
    "Compiled",
    "Excess",
    "Exchange",
    "Memory",
    "as_json",
    "attempt",
    "compile_for",
    "does_not_fit",
    "exchanges",
    "from_json",
    "said_of",
    "seconds_of_links",
    "seconds_of_network",
]

"""The collectives of a compiled program, read off its text: what XLA writes, for any devices.

Knows the text; knows no device, no model and no step.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Collective(NamedTuple):
    """A collective of a compiled program.

    Attributes:
        kind: all-reduce, reduce-scatter, all-gather, all-to-all or collective-permute.
        size: bytes of the whole, as a device holds it: what a reduction takes in, what a gathering gives.
        devices: how many take part together; 2 for a collective-permute; slices, where it is one between these.
        times: how often the program runs it.
        name: of the operation in JAX that it comes from, as far as the compiler kept it.
        group: numbers of the devices of the first group that takes part, by their places in the mesh.
        between: whether it goes over the network, between slices.
    """

    kind: str
    size: int
    devices: int
    times: int
    name: str
    group: tuple[int, ...] = ()
    between: bool = False

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
_TRANSFER = "_xla_megascale_transfer_type"  # of a send to other slices, which the runtime of the hosts carries out
# The names that a TPU's compiler gives: to a fusion that reduces and keeps a part, and to those among which it divides
# a collective that runs beside other work; the first of them counts.
_SCATTERS, _CONTINUES, _ENDS = "all-reduce-scatter", "async_collective_fusion", "async-collective-done"


def collectives(text: str, rounds: int | None = None, slices: int = 1) -> tuple[Collective, ...]:
    """Read the collectives off a compiled program, the largest traffic first.

    A loop's body counts as often as the loop runs, each branch of a conditional as if it were taken, and what starts
    and ends apart counts once.

    Args:
        text: of `jax.stages.Compiled.as_text()`.
        rounds: how often a loop counts whose end depends on the data; None refuses one.
        slices: over which the program runs. Its text is that of one slice, with transfers to the others.

    Raises:
        ValueError: the text has no entry, or a loop or a group of devices is written in a way that is not known.
    """
    bodies = dict(_computations(text))
    if "ENTRY" not in bodies:
        raise ValueError("no ENTRY in the text: expected what `jax.jit(f).lower(...).compile().as_text()` returns")
    devices = int(_search(r"num_partitions=(\d+)", text, "1")) * int(_search(r"replica_count=(\d+)", text, "1"))
    found = (_over_slices(one, devices, slices) for one in _walk(bodies, "ENTRY", 1, devices, rounds))
    return tuple(sorted(found, key=lambda c: -c.sent))


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every computation's name ("ENTRY" for the program's) and its lines; a kernel's notes may take several."""
    for match in re.finditer(r"^(ENTRY )?%?([^\s(]+) [^\n]*\{\n(.*?)^\}(?:,|$)", text, flags=re.MULTILINE | re.DOTALL):
        yield "ENTRY" if match[1] else match[2], match[3].splitlines()


def _walk(
    bodies: dict[str, list[str]], computation: str, times: int, devices: int, rounds: int | None
) -> Iterator[Collective]:
    for line in bodies[computation]:
        name, _, right = line.strip().removeprefix("ROOT ").partition(" = ")
        match = _COLLECTIVE.search(right.partition("metadata=")[0])
        if _TRANSFER in right and " send(" in right:
            kind, size = _transfer(right)
            yield Collective(kind, size, 1, times, _search(r'op_name="([^"]*)"', right, ""), (0,), True)
        elif match:
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
                for found in _walk(bodies, called, times, devices, rounds)
            ]
            # How often a loop runs may depend on the data: that of a loop without a collective does not matter.
            again = _trips(right, bodies, rounds) if inside and " while(" in right else 1
            yield from (found._replace(times=found.times * again) for found in inside)


def _transfer(instruction: str) -> tuple[str, int]:
    """Return the kind of what is sent to other slices, and the bytes that a device gives away."""
    kind = _search(rf'{_TRANSFER}="([A-Z_]+)"', instruction).lower().replace("_", "-")
    if kind not in _KINDS:
        raise ValueError(f"a transfer between slices in an unknown form: {kind}")
    dtype, shape = _TYPE.findall(instruction)[0]
    return kind, _bytes([(dtype, shape)])


def _over_slices(one: Collective, devices: int, slices: int) -> Collective:
    """Return a collective between slices with the devices that take part: those in the same place of every slice."""
    if not one.between:
        return one
    size = one.size * slices if one.kind == "all-gather" else one.size  # of the whole
    return one._replace(size=size, devices=slices, group=tuple(range(0, devices * slices, devices)))


def _called(instruction: str) -> list[str]:
    """Return the computations that an instruction runs, but for the operators of reductions."""
    roles = "calls|body|true_computation|false_computation" + ("|to_apply" if " call(" in instruction else "")
    called = re.findall(rf"\b(?:{roles})=%?([^\s,]+)", instruction)
    for group in re.findall(r"(?:branch_computations|called_computations)=\{([^}]*)\}", instruction):
        called += [name.strip().removeprefix("%") for name in group.split(",")]
    return called


def _trips(instruction: str, bodies: dict[str, list[str]], rounds: int | None) -> int:
    """Return how often a loop runs: what the compiler notes, or else what its counter has to go through."""
    known = _search(r'"known_trip_count":\{"n":"(\d+)"', instruction, "")
    if known:
        return int(known)
    condition = "\n".join(bodies[_search(r"condition=%?([^\s,]+)", instruction)])
    constants = _constants(condition)
    compared = re.findall(r" compare\(([^)]*)\), direction=LT", condition)
    bounds = {constants[name] for pair in compared for name in pair.split(", ") if name in constants}
    if len(bounds) != 1 and rounds is not None:
        return rounds
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
    return _bytes(found)


def _bytes(types: Iterable[tuple[str, str]]) -> int:
    """Return the bytes of arrays, given as their dtypes and shapes."""
    return sum(_bits(kind) * int(np.prod([int(n) for n in shape.split(",") if n])) for kind, shape in types) // 8


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

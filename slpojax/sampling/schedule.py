"""Who sits where: which prompts are read into which lanes, and which of their samples go on in which slots.

Knows counts and numbers; knows no model, no token and no array. Prompts come in their order; a slot whose sequence has
ended takes the next sample that waits on its device. No draw depends on any of this.
"""

import dataclasses
from collections import deque
from typing import NamedTuple


class Unit(NamedTuple):
    """Samples of a prompt that share a lane: `first` to `last`, this one not included."""

    prompt: int
    first: int
    last: int


class Seat(NamedTuple):
    """A sample of a prompt, and the lane that holds the prompt."""

    prompt: int
    sample: int
    lane: int


@dataclasses.dataclass
class Part:
    """What one device holds.

    Attributes:
        slots: their numbers among all, counted over blocks.
        lanes: that are free.
        left: of every other lane, how many of its samples have not ended.
        waiting: samples whose prompt is in a lane, and who have no slot.
    """

    slots: list[int]
    lanes: list[int]
    left: dict[int, int] = dataclasses.field(default_factory=dict)
    waiting: deque[Seat] = dataclasses.field(default_factory=deque)


@dataclasses.dataclass
class Plan:
    """All devices, and what is still to come.

    Attributes:
        units: whose prompts are in no lane yet.
        parts: of each device.
        seats: of each slot; None where it is free.
    """

    units: deque[Unit]
    parts: list[Part]
    seats: list[Seat | None]


def plan(prompts: int, samples: int, *, parts: int, lanes: int, blocks: int, slots: int) -> Plan:
    """Return the plan before anything has begun.

    Args:
        prompts: how many.
        samples: of each.
        parts: devices.
        lanes: of each device.
        blocks: of slots.
        slots: of a block, over all devices.
    """
    each, share = unit_size(prompts, samples, parts), slots // parts
    units = [
        Unit(prompt, first, min(first + each, samples))
        for prompt in range(prompts)
        for first in range(0, samples, each)
    ]
    own = [[b * slots + p * share + i for b in range(blocks) for i in range(share)] for p in range(parts)]
    return Plan(deque(units), [Part(mine, [*range(lanes)]) for mine in own], [None] * (blocks * slots))


def unit_size(prompts: int, samples: int, parts: int) -> int:
    """Return how many samples of a prompt one device takes: all, unless there are fewer prompts than devices."""
    return samples if prompts >= parts else -(-samples // (parts // max(1, prompts)))


def admit(plan: Plan, batch: int) -> list[list[tuple[int, Unit]]]:
    """Give lanes to the prompts of samples that can begin, and to the next ones until a batch to be read is full.

    Args:
        plan: which is changed.
        batch: how many prompts a device reads at once.

    Returns:
        Of each device, the lanes and the units whose prompts are to be read into them.
    """
    opened: list[list[tuple[int, Unit]]] = [[] for _ in plan.parts]

    def admit_to(number: int) -> None:
        part, unit = plan.parts[number], plan.units.popleft()
        lane = part.lanes.pop(0)
        part.left[lane] = unit.last - unit.first
        part.waiting.extend(Seat(unit.prompt, sample, lane) for sample in range(unit.first, unit.last))
        opened[number].append((lane, unit))

    def hungry(part: Part) -> bool:
        return len(part.waiting) < sum(plan.seats[slot] is None for slot in part.slots)

    while numbers := [n for n, part in enumerate(plan.parts) if plan.units and part.lanes and hungry(part)]:
        for number in numbers[: len(plan.units)]:
            admit_to(number)
    while numbers := [n for n, part in enumerate(plan.parts) if plan.units and part.lanes and len(opened[n]) % batch]:
        for number in numbers[: len(plan.units)]:
            admit_to(number)
    return opened


def seat(plan: Plan) -> list[int]:
    """Give free slots, the lowest first, to samples that wait; return the slots."""
    taken = []
    for part in plan.parts:
        for slot in part.slots:
            if part.waiting and plan.seats[slot] is None:
                plan.seats[slot] = part.waiting.popleft()
                taken.append(slot)
    return taken


def leave(plan: Plan, slot: int) -> Seat:
    """Free a slot, and its lane where this was the last sample of it; return who sat there."""
    who = plan.seats[slot]
    assert who is not None
    part = next(part for part in plan.parts if slot in part.slots)
    plan.seats[slot], part.left[who.lane] = None, part.left[who.lane] - 1
    if not part.left[who.lane]:
        del part.left[who.lane]
        part.lanes.append(who.lane)
    return who


def waits(plan: Plan) -> bool:
    """Return whether a sample has no slot yet."""
    return bool(plan.units) or any(part.waiting for part in plan.parts)


def taken(plan: Plan) -> list[int]:
    """Return the slots that hold a sequence."""
    return [slot for slot, who in enumerate(plan.seats) if who is not None]


def move_up(plan: Plan, size: int) -> list[tuple[int, int]]:
    """Move sequences of the last blocks into free slots of the first ones, where that empties a block.

    Args:
        plan: of one device, which is changed.
        size: of a block.

    Returns:
        (source, target) of every move.
    """
    live = taken(plan)
    first = -(-len(live) // size) * size
    free = [slot for slot in range(first) if plan.seats[slot] is None]
    moves = list(zip([slot for slot in live if slot >= first], free, strict=False))
    for source, target in moves:
        plan.seats[target], plan.seats[source] = plan.seats[source], None
    return moves

"""A plan as people read it: does it fit, where the bytes are, what crosses the links, and how fast a step could be.

Knows the record of a plan and the data sheets; compiles nothing. A GB is 10^9 bytes.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from slpojax import compiling, roofline
from slpojax.plan import making, passes, programs
from slpojax.plan.making import Result
from slpojax.roofline import DEVICES, Bound

T = TypeVar("T")

ASSUMPTIONS = (
    "products run at the data sheet's rate; padding, recomputed layers and the head's second look at the vocabulary "
    "count as work of the device, attention's scores, norms and samples do not",
    "memory moves the weights once in every pass of a micro-batch, the gradients twice, the state twice; activations "
    "are not counted",
    "collectives are rings, one after the other, each at the full rate of the links between its devices; latency is "
    "not counted",
    "data loading, evaluation and checkpoints take no time",
    "a step is slower than its bound: by 1.6 to 1.9 times where both are known, on a CPU whose rates were measured "
    "(benchmarks/RESULTS.md); no TPU and no GPU was timed",
)


class Speed(NamedTuple):
    """What follows from a time of a step.

    Attributes:
        seconds: of a step.
        mfu: operations that the step is worth over what the devices could do.
        tokens: a second, over all devices, a shared prompt once.
        hours: of a pass over the examples.
        chip_hours: the same times the chips.
    """

    seconds: float
    mfu: float
    tokens: float
    hours: float
    chip_hours: float


def bound(result: Result) -> Bound | None:
    """Return the least time of a step by what limits it; None where the devices are not known, or it does not fit.

    Args:
        result: the plan.
    """
    steps = making.of_step(result).values()
    if not result.device or any(one.memory is None for one in steps):
        return None
    device = DEVICES[result.device]
    links = [second for one in steps for second in compiling.seconds_of_links(device, result.chips, one.exchanges)]
    return Bound(
        products=result.work.executed / roofline.products(device, result.dtype),
        memory=result.work.moved / device.bandwidth,
        links=sum(links),
        network=sum(compiling.seconds_of_network(device, one.exchanges) for one in steps),
    )


def speed(result: Result, seconds: float) -> Speed:
    """Return what a time of a step means.

    Args:
        result: the plan, of devices that are known.
        seconds: of a step.
    """
    steps = result.epoch / result.work.examples
    hours = steps * seconds / 3600
    return Speed(
        seconds=seconds,
        mfu=roofline.utilisation(DEVICES[result.device], result.devices, result.work.useful, seconds),
        tokens=result.work.tokens / seconds,
        hours=hours,
        chip_hours=hours * result.number,
    )


def render(result: Result) -> str:
    """Return the plan as text.

    Args:
        result: the plan.
    """
    return "\n".join([*_about(result), "", *_memory(result), "", *_links(result), "", *_time(result)])


def verdict(result: Result) -> str:
    """Return in a line whether the plan fits, and by how much it does or does not.

    Args:
        result: the plan.
    """
    fit = making.fit(result)
    used = f"the {fit.program} takes {_gb(fit.used)}"
    if fit.fits is None:
        return f"{used} on each device; how much this machine's devices may use is not known here"
    of = f"{used} of {_gb(fit.room)} on each device"
    if fit.fits:
        return f"FITS: {of}; {_gb(fit.room - fit.used)} are left"
    return f"DOES NOT FIT: {of}: {_gb(fit.used - fit.room)} too much"


def _about(result: Result) -> list[str]:
    mesh = " ".join(f"{axis}={size}" for axis, size in result.mesh.items())
    lie = f" as {'x'.join(map(str, result.chips))}" if result.chips else ""
    lie = f" in {result.slices} slices{lie} each" if result.slices > 1 else lie
    where = (
        f"{result.topology}: {result.number} chips{lie}"
        if result.topology
        else f"this machine: {result.number} devices"
    )
    where += f", {result.devices} devices" if result.devices != result.number and result.topology else ""
    numbers = f"{result.trained:,} parameters are trained" + f", {result.still:,} frozen" * bool(result.still)
    micro, rows = result.micro
    responses = " + ".join(f"{size:.0f}" for size in result.responses)
    seconds = ", ".join(f"{name} {one.seconds:.0f} s" for name, one in result.programs.items())
    return [
        f"devices   {where}; mesh {mesh}",
        f"model     {result.model}; {numbers}; {result.dtype}",
        f"lengths   {result.lengths}: {result.prompt:.0f} + {responses} tokens on average; {result.epoch:,} examples a "
        "pass",
        f"batch     {result.work.examples:,} examples in {result.rows} rows of {result.length}: {micro} "
        f"micro-batch(es) of {rows} row(s) on each device; {programs.filled(result.work):.0%} of the cells hold a "
        "token",
        f"compiled  {seconds}; {result.versions}",
    ]


def _memory(result: Result) -> list[str]:
    lines = [verdict(result), "", "| a device's bytes | MB |", "|---|---:|"]
    lines += [f"| {name} | {_mb(size)} |" for name, size in result.held.items()]
    program = result.programs[programs.STEP]
    if program.memory is None:
        return lines + _peaks(result)
    memory, said = program.memory, sum(result.held.values())
    if memory.arguments > said:
        lines.append(f"| what the device's layout adds to these | {_mb(memory.arguments - said)} |")
    lines.append(
        f"| temporaries, the gradients ({_mb(result.held['parameters'])}) among them | {_mb(memory.temporaries)} |"
    )
    beside = memory.outputs - memory.aliased
    lines.append(f"| results that are not written over the state | {_mb(beside)} |")
    if result.shared:
        lines.append(
            f"| a reference's weights that are the policy's own, counted twice above | -{_mb(result.shared)} |"
        )
    lines.append(f"| **peak of the step** | **{_mb(memory.peak - result.shared)}** |")
    if memory.host:
        lines.append(f"| in the host's memory | {_mb(memory.host)} |")
    return lines + _peaks(result)


def _peaks(result: Result) -> list[str]:
    """Return a line for each program but the step, with what stays on the device beside it where something does."""
    lines = []
    for name, one in result.programs.items():
        if name == programs.STEP:
            continue
        beside = result.beside.get(name, 0)
        with_it = f", with {_mb(beside)} of weights as they are trained" if beside else ""
        if one.memory:
            lines.append(f"| peak of the {name}{with_it} | {_mb(making.peak(result, name))} |")
        elif one.excess:
            lines.append(
                f"| the {name} does not fit: {_gb(one.excess.room)} are there, it takes | {_mb(one.excess.used)} |"
            )
    return lines


def _links(result: Result) -> list[str]:
    device = DEVICES[result.device] if result.device else None
    alike: dict[tuple[str, str, str, int], tuple[int, float, float, float]] = {}
    for name, compiled in result.programs.items():
        for one in compiled.exchanges:
            key = name, one.kind, along(one.axes, result.mesh, one.devices), one.devices
            (seconds,) = compiling.seconds_of_links(device, result.chips, [one]) if device else (0.0,)
            times, sent, took, between = alike.get(key, (0, 0.0, 0.0, 0.0))
            alike[key] = times + one.times, sent + one.sent, took + seconds, between + one.network
    if not alike:
        return ["nothing crosses the links"] if result.devices == 1 else []
    several = result.slices > 1
    more = (" MB to other slices |", "---:|") if several else ("", "")
    lines = [
        f"| program | collective | along | devices | times | MB sent | ms |{more[0]}",
        f"|---|---|---|---:|---:|---:|---:|{more[1]}",
    ]
    for (name, kind, axes, devices), (times, sent, took, between) in sorted(alike.items(), key=lambda x: -x[1][1]):
        shown = f"{1e3 * took:,.2f}" if device else "-"
        line = f"| {name} | {kind} | {axes} | {devices} | {times:,} | {sent / 1e6:,.1f} | {shown} |"
        lines.append(line + f" {between / 1e6:,.1f} |" * several)
    if any(name in (passes.READ, passes.SAMPLE) for name in result.programs):
        lines += ["", "of the sampling, one token of each slot; of the pass over prompts, as many as are read at once"]
    return lines


def along(axes: Sequence[str], mesh: dict[str, int], devices: int) -> str:
    """Return the axes of a mesh that a collective goes along, and that it is a part of them where it is.

    Example:
        >>> along(("fsdp",), {"data": 2, "fsdp": 8}, 8), along(("fsdp",), {"data": 2, "fsdp": 8}, 4)
        ('fsdp', 'a part of fsdp')
    """
    whole = 1
    for axis in axes:
        whole *= mesh[axis]
    named = " x ".join(axes)
    return named if devices == whole else f"a part of {named}"


def _time(result: Result) -> list[str]:
    found = bound(result)
    if found is None:
        known = "" if result.device else "; no data sheet of these devices is known here"
        return [f"a step is worth {result.work.useful / 1e12:,.2f} TFLOP{known}"]
    device = DEVICES[result.device]
    least, most = speed(result, found.least), speed(result, found.most)
    one_way = f"{device.link / 1e9:.0f} GB/s a link one way"
    rate = roofline.products(device, result.dtype)
    lines = [
        "| a step's | at least ms | from |",
        "|---|---:|---|",
        f"| products | {1e3 * found.products:,.1f} | {result.work.executed / 1e12:,.2f} TFLOP of each device at "
        f"{rate / 1e12:,.0f} TFLOP/s ({result.dtype}) |",
        f"| memory | {1e3 * found.memory:,.1f} | {_gb(result.work.moved)} of each device at "
        f"{device.bandwidth / 1e9:,.0f} GB/s |",
        f"| links | {1e3 * found.links:,.1f} | the table above at {one_way} |",
        *_network(result, found),
        "",
        f"a step takes at least {least.seconds:.3g} s, if all of these go on at once ({found.limit} limits it), and "
        f"{most.seconds:.3g} s if none does while another does. No measurement is behind this: it is a bound.",
        f"it is worth {result.work.useful / 1e12:,.2f} TFLOP and {result.work.tokens:,.0f} tokens: MFU at most "
        f"{least.mfu:.0%} ({most.mfu:.0%}), {least.tokens:,.0f} tokens/s ({most.tokens:,.0f})",
        f"a pass takes at least {least.hours:.3g} h ({most.hours:.3g}): {least.chip_hours:,.3g} chip-hours "
        f"({most.chip_hours:,.3g})",
    ]
    lines += [*_reference(result), *_sampling(result)]
    lines += ["", "assumed:", *(f"- {line}" for line in ASSUMPTIONS), f"- numbers of the devices: {device.source}"]
    return lines


def _network(result: Result, found: Bound) -> list[str]:
    if result.slices == 1:
        return []
    device, steps = DEVICES[result.device], making.of_step(result).values()
    sent = sum(exchange.network for one in steps for exchange in one.exchanges)
    return [
        f"| network | {1e3 * found.network:,.1f} | {_gb(sent)} from each device to other slices, at "
        f"{device.network / device.per_chip / 1e9:.3g} GB/s |"
    ]


def _reference(result: Result) -> list[str]:
    """Return a line on the pass of the reference before training; products alone where that program is not planned."""
    device = DEVICES[result.device]
    if not result.cached:
        return []
    seconds = result.cached / (result.devices * roofline.products(device, result.dtype)) / result.work.examples
    one, what = result.programs.get(passes.REFERENCE), "products"
    if one is not None and one.memory is not None:
        links = sum(compiling.seconds_of_links(device, result.chips, one.exchanges)) / result.scan
        seconds, what = max((seconds, "products"), (links, "links"))
    hours = seconds * result.epoch / 3600
    return [
        f"before it, the reference's pass: at least {hours:.3g} h ({what}), {hours * result.number:,.3g} chip-hours"
    ]


def sampling_bound(result: Result) -> Bound | None:
    """Return the least time of one more token of every slot by what limits it; None where it is not known.

    Args:
        result: the plan.
    """
    one, work = result.programs.get(passes.SAMPLE), result.sampled
    if one is None or one.memory is None or work is None or not result.device:
        return None
    device = DEVICES[result.device]
    return Bound(
        products=work.executed / roofline.products(device, result.dtype),
        memory=work.moved / device.bandwidth,
        links=sum(compiling.seconds_of_links(device, result.chips, one.exchanges)),
        network=compiling.seconds_of_network(device, one.exchanges),
    )


def _sampling(result: Result) -> list[str]:
    found, work = sampling_bound(result), result.sampled
    if found is None or work is None:
        return []
    return [
        f"sampling: a token of each of {work.slots:,} slots takes at least {1e3 * found.least:,.2f} ms ({found.limit}; "
        f"{1e3 * found.most:,.2f} ms if nothing overlaps): {work.slots / found.least:,.0f} tokens/s at most, while "
        "all slots are taken"
    ]


def ranked(results: Iterable[tuple[T, Result]]) -> list[tuple[T, Result]]:
    """Return plans by the time of a step in which nothing overlaps, those that do not fit last.

    Args:
        results: what was changed, and the plan.
    """

    def place(item: tuple[T, Result]) -> tuple[bool, float]:
        found = bound(item[1])
        return making.fit(item[1]).fits is False, found.most if found else float("inf")

    return sorted(results, key=place)


def _gb(size: int | float) -> str:
    return f"{size / 1e9:,.2f} GB"


def _mb(size: int | float) -> str:
    return f"{size / 1e6:,.1f}"

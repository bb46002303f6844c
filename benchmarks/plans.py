r"""The page of plans: which model fits where, what its devices send each other, and how fast a step could be.

    python benchmarks/plans.py [--models llama-3.1-8b] [--topologies v5e-16 v5e-64] [--most 3] [--page FILE]

Compiles the step of `configs/slpo_hh.py` with the models and for the TPUs of `LINES`, one line after the other, the
most telling ones first, and writes the page, its pictures and its numbers (.md, .png, .json). What the numbers hold
already is not compiled again, so that the command goes on where it was stopped; `--most 0` draws alone. A line takes
some minutes of a core. Needs libtpu (`make check` installs it and points TPU_LIBRARY_PATH at it). Nothing runs on a
TPU.

Weights, gradients and moments are split over all devices of a slice (mesh.fsdp); splash attention, layers recomputed; a
batch has as many pairs a chip as `PAIRS` says, so it grows with the chips. Where one micro-batch of a device does not
fit, two are tried, then four. What cannot fit by its state alone is not compiled.
"""

import argparse
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import parts
from common import ROOT, header
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slpojax import roofline, settings, topology
from slpojax.plan import making, report, search, shapes
from slpojax.plan.making import Result
from slpojax.public import SHAPES
from slpojax.settings import Config

OF = "slpo_hh"
PAIRS = {"v5e": 16, "v6e": 32, "v5p": 32, "tpu7x": 64}  # a chip: some 4 rows of 950 tokens for every 200 TFLOP/s
PYTHIAS = ("pythia-1b", "pythia-2.8b", "pythia-6.9b", "pythia-12b")
LLAMAS = ("llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "llama-3.1-70b")
OTHERS = ("pythia-12b", "pythia-6.9b", "llama-3.2-3b")
SCALED = ("pythia-2.8b", "llama-3.1-8b")  # whose steps are compared over slices of 16 chips and more
GROWING = {"v5e": ("v5e-16", "v5e-64", "v5e-256", "2xv5e-256"), "v5p": ("v5p-32", "v5p-128", "v5p-512", "v5p-1024")}

# Which lines there are, the most telling first. Left out is what cannot matter: models of 1B on 64 chips and more, and
# of 12B and less on a slice of v5p, v6e or tpu7x that is larger than a host, but for the two that are scaled.
LINES: tuple[tuple[str, str], ...] = (
    *((model, name) for name in ("v5e-16", "v5e-256", "v5e-64") for model in SCALED),
    *(("llama-3.1-70b", name) for name in ("v5e-256", "v5p-128", "v5p-512", "v6e-256", "tpu7x-128")),
    *((model, "2xv5e-256") for model in SCALED),
    *((model, name) for model in SCALED for name in ("v5p-8", "v6e-8", "tpu7x-8")),
    *((model, name) for name in ("v5p-128", "v5p-512", "v5p-1024", "v5p-32") for model in SCALED),
    *(
        (model, name)
        for model in ("pythia-12b", "pythia-6.9b", "llama-3.2-3b")
        for name in ("v5e-16", "v5p-8", "v6e-8")
    ),
    *((model, name) for model in ("pythia-1b", "llama-3.2-1b") for name in ("v5e-16", "v5p-8", "v6e-8")),
    *((model, name) for model in ("pythia-12b", "pythia-6.9b", "llama-3.2-3b") for name in ("v5e-64", "v5e-256")),
    *((model, "v6e-256") for model in SCALED),
    *(("llama-3.1-70b", name) for name in ("v5e-16", "v5e-64", "v5p-8", "v6e-8", "tpu7x-8")),
)
Numbers = dict[str, Any]  # of the lines, by "model on topology"


def main() -> None:
    """Compile what is missing, and write page, pictures and numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=[*PYTHIAS, *LLAMAS], choices=list(SHAPES))
    parser.add_argument("--topologies", nargs="+", help="of those of the page; all where none is named")
    parser.add_argument("--most", type=int, default=1000, help="lines that are compiled at most")
    parser.add_argument("--page", type=pathlib.Path, default=ROOT / "docs" / "results" / "plans")
    args = parser.parse_args()
    compilers = topology.prepare(LINES[0][1])
    print(header(args, *compilers), flush=True)
    file = args.page.with_suffix(".json")
    known: Numbers = json.loads(file.read_text()) if file.exists() else {}
    asked = [(model, name) for model, name in LINES if model in args.models and name in (args.topologies or [name])]
    missing = [(model, name) for model, name in asked if named(model, name) not in known]
    print(f"{len(asked)} lines, {len(missing)} to be compiled", flush=True)
    for model, name in missing[: args.most]:
        known[named(model, name)] = line(model, name)
        file.write_text(as_text(known))
        print(named(model, name), *row(known, model, name), sep=" | ", flush=True)
    draw(known, args.page)
    args.page.with_suffix(".md").write_text(page(known, args.page.name))


def as_text(known: Mapping[str, Any]) -> str:
    """Return the numbers as JSON, a row for each line of the page."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(one)}" for name, one in sorted(known.items())) + "\n}\n"


# ---- a line ----------------------------------------------------------------------------------------------------------


def named(model: str, name: str) -> str:
    return f"{model} on {name}"


def keys(model: str, name: str, micro: int) -> dict[str, Any]:
    """Return what a line changes of the configuration."""
    target = topology.parse(name)
    return {
        "plan.topology": name,
        "plan.model": model,
        "plan.programs": "step",
        "mesh.data": target.slices,
        "batch_size": PAIRS[target.device] * target.number,
        "accumulate": micro * target.number * roofline.DEVICES[target.device].per_chip,
        "model.attention": topology.kernel(name),
    }


def line(model: str, name: str) -> dict[str, Any]:
    """Return the numbers of a line: those of the first number of micro-batches that fits, or of the last one tried."""
    config = configured(model, name, 1)
    hf_config, _ = shapes.find(config)
    state = search.state_bytes(config, hf_config, making.devices_of(config))
    room = roofline.DEVICES[topology.parse(name).device].memory
    if state > room:
        return {"state": state, "room": room}
    for micro in (1, 2, 4):
        made = making.make(configured(model, name, micro))
        fit = making.fit(made)
        if fit.fits or fit.used > 2 * fit.room:
            break
    return {"keys": keys(model, name, micro), "plan": json.loads(making.as_json(made))}


def configured(model: str, name: str, micro: int) -> Config:
    return settings.replace(parts.configure({}, of=OF), keys(model, name, micro) | {"model.path": f"absent/{model}"})


def plan_of(known: Mapping[str, Any], model: str, name: str) -> Result | None:
    """Return the plan of a line; None where it is not there, or not compiled."""
    found = known.get(named(model, name), {}).get("plan")
    return making.from_json(found) if found else None


# ---- the page --------------------------------------------------------------------------------------------------------


def row(known: Mapping[str, Any], model: str, name: str) -> list[str]:
    """Return the cells of a line behind its model and topology."""
    one, made = known[named(model, name)], plan_of(known, model, name)
    if made is None:
        over = (one["state"] - one["room"]) / 1e9
        return [f"no, by {over:.1f} GB of state alone", f"{one['state'] / 1e9:.1f}", *["-"] * 7]
    fit, bound = making.fit(made), report.bound(made)
    share = f"{fit.used / 1e9:.1f} of {fit.room / 1e9:.1f}"
    if bound is None:
        return [f"no, by {(fit.used - fit.room) / 1e9:.1f} GB", share, *["-"] * 7]
    least, most = report.speed(made, bound.least), report.speed(made, bound.most)
    micro, rows = made.micro
    return [
        f"yes, {(fit.room - fit.used) / 1e9:.1f} GB left",
        share,
        f"{made.work.examples:,}",
        f"{micro} x {rows}",
        f"{sent(made) / 1e9:.1f}" + f", {network(made) / 1e9:.2f} of it to other slices" * (made.slices > 1),
        f"{least.seconds:.2f} to {most.seconds:.2f} ({bound.limit})",
        f"{least.mfu:.0%} ({most.mfu:.0%})",
        f"{least.tokens / 1e3:,.0f} ({most.tokens / 1e3:,.0f})",
        f"{least.chip_hours:,.1f} ({most.chip_hours:,.1f})",
    ]


def sent(made: Result) -> float:
    """Return the bytes that a device sends in a step."""
    return network(made) + sum(one.sent for program in made.programs.values() for one in program.exchanges)


def network(made: Result) -> float:
    """Return the bytes that a device sends to other slices."""
    return sum(one.network for program in made.programs.values() for one in program.exchanges)


def page(known: Mapping[str, Any], stem: str) -> str:
    """Return the page as Markdown."""
    done = [(model, name) for model, name in LINES if named(model, name) in known]
    ordered = sorted(done, key=_place)
    missing: dict[str, list[str]] = {}
    for model, name in LINES:
        if (model, name) not in done:
            missing.setdefault(model, []).append(name)
    listed = "; ".join(f"{model} on {', '.join(names)}" for model, names in missing.items())
    lines = [
        "| model | devices | fits | GB a device | pairs a batch | micro-batches x rows | GB sent | s a step, at least "
        "| MFU at most | thousand tokens/s | chip-hours a pass |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [f"| {model} | {name} | {' | '.join(row(known, model, name))} |" for model, name in ordered]
    versions = sorted({made.versions for one in done if (made := plan_of(known, *one))})
    text = (ROOT / "benchmarks" / "plans.txt").read_text()
    return text.format(
        table="\n".join(lines),
        scaling="\n".join(scaling(known)),
        missing=f"Lines that are not compiled yet: {listed}." if missing else "All lines are compiled.",
        versions="; ".join(versions),
        assumptions="\n".join(f"- {line}" for line in report.ASSUMPTIONS),
        pairs=", ".join(f"{count} ({device})" for device, count in PAIRS.items()),
        stem=stem,
    )


def _place(one: tuple[str, str]) -> tuple[int, int, int]:
    """Return by what lines are ordered: the model, the kind of chip, their number."""
    target = topology.parse(one[1])
    return (*PYTHIAS, *LLAMAS).index(one[0]), list(PAIRS).index(target.device), target.number


class Point(NamedTuple):
    """A model on a slice of one kind of chip."""

    chips: int
    made: Result


def grown(known: Mapping[str, Any]) -> Iterator[tuple[str, str, list[Point]]]:
    """Yield model, device and the points of it that fit, from the smallest slice to the largest."""
    for model in SCALED:
        for device, names in GROWING.items():
            plans = [plan_of(known, model, name) for name in names]
            points = [Point(made.number, made) for made in plans if made and report.bound(made)]
            if points:
                yield model, device, points


def efficiency(points: list[Point], bound: str) -> list[tuple[int, float]]:
    """Return of each number of chips the time of a step of the smallest slice over its own.

    Args:
        points: whose batches grow with the chips.
        bound: least (all goes on at once) or most (nothing does).
    """
    times = [getattr(report.bound(point.made), bound) for point in points]
    return [(point.chips, times[0] / time) for point, time in zip(points, times, strict=True)]


def scaling(known: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table of weak-scaling efficiencies."""
    lines = [
        "| model | device | chips | all at once | limited by | one after the other |",
        "|---|---|---:|---:|---|---:|",
    ]
    for model, device, points in grown(known):
        both = zip(points, efficiency(points, "least"), efficiency(points, "most"), strict=True)
        for point, (chips, least), (_, most) in both:
            found = report.bound(point.made)
            assert found is not None
            lines.append(f"| {model} | {device} | {chips} | {least:.0%} | {found.limit} | {most:.0%} |")
    return lines


def draw(known: Mapping[str, Any], to: pathlib.Path) -> None:
    """Draw memory and bytes sent of a device, and weak-scaling efficiency, against the number of chips."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    memory, links = (figure.add_subplot(1, 2, i) for i in (1, 2))
    for model, device, points in grown(known):
        style, chips = _style(model, device), [point.chips for point in points]
        memory.plot(chips, [making.fit(point.made).used / 1e9 for point in points], **style)
        links.plot(chips, [sent(point.made) / 1e9 for point in points], **style)
    _axes(memory, "peak memory of a device", "GB")
    _axes(links, "what a device sends in a step", "GB")
    figure.suptitle("compiled for TPUs that are not there; nothing ran", fontsize=10)
    figure.savefig(to.parent / f"{to.name}_memory.png", dpi=120)

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    for place, (bound, title) in enumerate((("least", "all goes on at once"), ("most", "one after the other")), 1):
        axes = figure.add_subplot(1, 2, place)
        for model, device, points in grown(known):
            shown = [(chips, share) for chips, share in efficiency(points, bound) if chips <= 256]
            axes.plot(*zip(*shown, strict=True), **_style(model, device))
        axes.axhline(0.9, color="0.6", linewidth=0.8, linestyle=":")
        _axes(axes, f"weak scaling, {title}", "time of a step on 16 chips / its own")
    figure.suptitle("bounds by data sheets for TPUs that are not there; nothing ran", fontsize=10)
    figure.savefig(to.parent / f"{to.name}_scaling.png", dpi=120)


def _style(model: str, device: str) -> dict[str, Any]:
    """Return how a model on a kind of chip is drawn: a colour and a marker for the model, a line for the chip."""
    number = SCALED.index(model)
    return {
        "color": f"C{number}",
        "marker": "os"[number],
        "markersize": (9, 5)[number],
        "markerfacecolor": "none",
        "linestyle": "-" if device == "v5e" else "--",
        "label": f"{model}, {device} ({PAIRS[device]} pairs a chip)",
    }


def _axes(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("chips; the batch grows with them")
    axes.set_ylabel(label)
    axes.set_ylim(0, 1.1 * axes.dataLim.y1 if axes.lines else 1)
    axes.set_xticks([16, 32, 64, 128, 256, 512], labels=["16", "32", "64", "128", "256", "512"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=7)


if __name__ == "__main__":
    main()

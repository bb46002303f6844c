"""The curves of one or several runs as one picture, from their metrics.jsonl: `python -m slpojax.plots RUN [RUN ...]`.

Beside them the pictures of an evaluation: reliability, samples, win rates.

Knows what metrics mean (`slpojax.quantities`) and matplotlib, which is imported only here and only when a picture is
drawn. Knows no objective and no world.
"""

import importlib
import json
import math
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from slpojax import log, wording
from slpojax.calibration import Reliability
from slpojax.places import fetching, is_bucket
from slpojax.quantities import FRONTIERS, QUANTITIES, Quantity, find, label

_USAGE = "usage: python -m slpojax.plots RUN [RUN ...] [--to=FILE]; RUN is the output folder of a run"
_STYLES = (
    "-",
    "--",
    ":",
    "-.",
    (0, (1, 3)),
    (0, (6, 4)),
)  # of an axis's metrics, where the colour says which run it is

Points = tuple[np.ndarray, np.ndarray]  # steps, values


class Run(NamedTuple):
    """What a run has: a name for the legend, and its points by metric and split."""

    name: str
    points: dict[tuple[str, str], Points]


def main(arguments: Sequence[str]) -> str:
    """Draw the runs that a command line names, and return what there is to say.

    Args:
        arguments: folders of runs or their metrics.jsonl, here or in buckets, and perhaps `--to=FILE`. The picture of
            one run here goes to its folder, any other to the working directory, as curves.png.

    Raises:
        ValueError: there is no such run, or it holds nothing to draw.
        ImportError: matplotlib is not installed.
    """
    if any(argument in ("--help", "-h") for argument in arguments):
        return f"{_USAGE}\n"
    paths = [argument for argument in arguments if not argument.startswith("--")]
    options = [argument for argument in arguments if argument.startswith("--")]
    if not paths or any(not option.startswith("--to=") for option in options):
        raise ValueError(_USAGE)
    alone = pathlib.Path(paths[0]) if len(paths) == 1 and not is_bucket(paths[0]) else None
    folder = alone.parent if alone and alone.is_file() else alone or pathlib.Path()
    to = pathlib.Path(options[-1].removeprefix("--to=")) if options else folder / "curves.png"
    if to.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--to={to}: expected the name of a .png, .pdf or .svg file")
    if options and not to.parent.is_dir():
        raise ValueError(f"--to={to}: there is no folder {to.parent}{wording.near_paths(to.parent)}")
    curves(paths, to)
    return f"wrote {to}\n"


def curves(runs: Sequence[str | pathlib.Path], picture: str | pathlib.Path, *, title: str = "") -> None:
    """Draw metrics against the step, an axis for each kind that a run has, and the reward against the KL it costs.

    Of one run, training is a faint line with its running mean, and evaluations are points of the same colour. Of
    several, a colour is a run, and an axis shows evaluations where there are some, else training's running mean.

    Args:
        runs: output folders, or their metrics.jsonl.
        picture: the file to write.
        title: above all axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is no such run, or it holds nothing to draw.
    """
    try:
        figures, lines = (importlib.import_module(f"matplotlib.{name}") for name in ("figure", "lines"))
    except ImportError as error:
        raise ImportError("the plot of the curves needs matplotlib: `pip install 'slpojax[plot]'`") from error
    read = [Run(name, load(path)) for name, path in zip(_names(runs), runs, strict=True)]
    known = list(dict.fromkeys(metric for run in read for metric, _ in run.points))
    shown = [
        quantity for quantity in QUANTITIES if quantity.drawn and any(find(metric) is quantity for metric in known)
    ]
    fronts = [pair for pair in FRONTIERS if any((metric, "eval") in run.points for run in read for metric in pair[1:])]
    if not shown:
        raise ValueError(f"{', '.join(map(str, runs))}: no metric to draw, such as loss")
    count = len(shown) + len(fronts)
    across = min(3, count)
    down = math.ceil(count / across)
    figure = figures.Figure(figsize=(4.8 * across, 3.3 * down + 0.8), layout="constrained")
    places = (figure.add_subplot(down, across, i) for i in range(1, count + 1))
    for horizontal, vertical in fronts:
        _frontier(next(places), read, horizontal, vertical)
    for quantity in shown:
        _over_steps(next(places), lines.Line2D, read, quantity)
    if len(read) > 1:
        handles = [lines.Line2D([], [], color=f"C{i}", linewidth=3) for i in range(len(read))]
        figure.legend(handles, [run.name for run in read], loc="outside upper center", ncols=4, fontsize=9)
        figure.suptitle(title, fontsize=11)
    else:
        how = "lines: training and its running mean; points: held-out examples and fresh samples"
        figure.suptitle(f"{title or read[0].name}\n{how}", fontsize=11)
    figure.savefig(picture, dpi=120)


def load(path: str | pathlib.Path) -> dict[tuple[str, str], Points]:
    """Return (metric, split) -> (steps, values) of a run's metrics.jsonl; a torn last line is left out.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        ValueError: there is no such file, or a line of it is no row of metrics.
    """
    if is_bucket(path):
        name = str(path).rstrip("/")
        path = fetching.fetched(name if name.endswith(".jsonl") else f"{name}/metrics.jsonl", log.say)
    file = pathlib.Path(path)
    file = file / "metrics.jsonl" if file.is_dir() else file
    if not file.is_file():
        near = wording.near_paths(path) if not pathlib.Path(path).is_dir() else "; the folder holds no run"
        raise ValueError(f"{path}: no metrics.jsonl there{near}")
    points: dict[tuple[str, str], dict[int, float]] = {}
    texts = file.read_text(errors="replace").split("\n")
    for number, text in enumerate(texts, 1):
        if not text:
            continue
        try:
            row = json.loads(text)
            step, split = row["step"], row["split"]
            values = {name: float(value) for name, value in row.items() if name not in ("step", "split")}
            if type(step) is not int or not isinstance(split, str) or not abs(step) < 2**53:
                raise ValueError
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            if number == len(texts):  # a line that is being written: whole ones end with a line break
                continue
            raise ValueError(
                f"{file}, line {number}: expected an object of numbers with a step and a split, as a run writes them"
            ) from error
        for metric, value in values.items():
            points.setdefault((metric, split), {})[step] = value
    return {
        key: (np.array([*seen], np.float64), np.array([*seen.values()], np.float64)) for key, seen in points.items()
    }


def reliability(found: Reliability, margin: np.ndarray, picture: str | pathlib.Path, *, title: str = "") -> None:
    """Draw how often preferences are right that are held with some confidence, and the margins that they rest on.

    Args:
        found: the bins.
        margin: reward of the chosen answer minus that of the rejected one, of every pair, in nats.
        picture: the file to write.
        title: above both.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, (left, right) = _figure(2, title)
    full = found.pairs > 0
    width = found.edges[1] - found.edges[0]
    middle = 0.5 * (found.edges[:-1] + found.edges[1:])
    left.bar(
        middle[full],
        found.accuracy[full],
        width=0.92 * width,
        color="C0",
        alpha=0.35,
        label="right (pairs at the foot)",
    )
    left.plot(found.confidence[full], found.accuracy[full], "o", color="C0", markersize=4, label="mean of the bin")
    left.plot([0.5, 1], [0.5, 1], "k--", linewidth=0.8, label="calibrated")
    for x, count in zip(middle[full], found.pairs[full], strict=True):
        left.annotate(
            f"{count:,}", (x, 0.01), ha="center", fontsize=7, color="0.35", xycoords=("data", "axes fraction")
        )
    left.set(title=f"Reliability: expected calibration error {found.ece:.3f}", xlabel="confidence of the reward")
    left.set(ylabel="share of pairs ranked right", xlim=(0.5, 1), ylim=(0, 1.2), yticks=np.linspace(0, 1, 6))
    left.legend(fontsize=7, loc="upper center", ncols=3)
    _histogram(right, margin, "pairs")
    right.axvline(0, color="k", linewidth=0.8)
    right.set(title=f"Margins: {np.mean(margin > 0):.0%} above 0", xlabel="reward margin, chosen minus rejected (nats)")
    figure.savefig(picture, dpi=120)


def samples(tokens: np.ndarray, log_ratio: np.ndarray | None, picture: str | pathlib.Path, *, title: str = "") -> None:
    """Draw the lengths of sampled answers, and how much likelier each is under the policy than under the reference.

    Args:
        tokens: of every answer.
        log_ratio: log P(answer) - log P_ref(answer), in nats; None where it is not known.
        picture: the file to write.
        title: above both.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, axes = _figure(1 if log_ratio is None else 2, title)
    _histogram(axes[0], tokens, "answers", whole=True)
    axes[0].axvline(np.mean(tokens), color="C1", linewidth=1.2)
    axes[0].set(title=f"Length: {np.mean(tokens):.1f} tokens on average", xlabel="tokens of an answer")
    if log_ratio is not None:
        _histogram(axes[1], log_ratio, "answers")
        axes[1].axvline(0, color="k", linewidth=0.8)
        axes[1].axvline(np.mean(log_ratio), color="C1", linewidth=1.2)
        axes[1].set(title=f"KL(policy || reference): {np.mean(log_ratio):.2f} nats, the mean")
        axes[1].set(xlabel="log P(answer) - log P_ref(answer), in nats")
    figure.savefig(picture, dpi=120)


def win_rates(rates: Sequence[tuple[str, float, float]], picture: str | pathlib.Path, *, title: str = "") -> None:
    """Draw win rates with intervals of two standard errors to either side, and the line of chance.

    Args:
        rates: the name of each, the rate, and its standard error, 0 to 1.
        picture: the file to write.
        title: above them.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, (axes,) = _figure(1, "", size=(6.4, 1.4 + 0.42 * len(rates)))
    for place, (_, value, error) in zip(np.arange(len(rates))[::-1], rates, strict=True):
        spread = 200 * error if math.isfinite(error) else 0.0
        axes.errorbar(100 * value, place, xerr=spread, fmt="o", color="C0", capsize=3, markersize=5)
        text = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
        axes.annotate(f"{100 * value:.1f}", (100 * value, place), (0, 6), **text)
    axes.axvline(50, color="k", linewidth=0.8)
    axes.set(yticks=np.arange(len(rates))[::-1], yticklabels=[name for name, *_ in rates], title=title)
    axes.set(xlabel="win rate (%), ± two standard errors", xlim=(-3, 103), ylim=(-0.6, len(rates) - 0.2))
    figure.savefig(picture, dpi=120)


def _figure(count: int, title: str, size: tuple[float, float] | None = None) -> tuple[Any, list[Any]]:
    """Return a figure and so many axes side by side, each with a faint grid."""
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError("pictures need matplotlib: `pip install 'slpojax[plot]'`") from error
    figure = figures.Figure(figsize=size or (5.2 * count, 3.8), layout="constrained")
    axes = [figure.add_subplot(1, count, i) for i in range(1, count + 1)]
    for one in axes:
        one.grid(alpha=0.25)
        one.set_axisbelow(True)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure, axes


def _histogram(axes: Any, values: np.ndarray, what: str, *, whole: bool = False) -> None:
    """Draw how often values occur; of whole numbers every bar holds as many."""
    bins: Any = min(40, max(5, len(values) // 5))
    if whole:
        width = max(1, math.ceil((np.max(values) - np.min(values) + 1) / 40))
        bins = np.arange(np.min(values) - 0.5, np.max(values) + width, width)
    axes.hist(values, bins=bins, color="C0", alpha=0.6)
    axes.set_ylabel(what)


def _names(runs: Sequence[str | pathlib.Path]) -> list[str]:
    """Return what tells runs apart: the last parts of their paths, as many as it takes."""
    paths = [pathlib.Path(run).absolute() for run in runs]
    paths = [path.parent if path.name == "metrics.jsonl" else path for path in paths]
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _frontier(axes: Any, runs: Sequence[Run], horizontal: str, vertical: str) -> None:
    """Draw the evaluations of every run as a path of reward against KL, whose last point is large."""
    units = [(find(name) or QUANTITIES[0]).unit for name in (horizontal, vertical)]
    axes.set(title="What the reward costs", xlabel=f"{label(horizontal)} ({units[0]})", ylabel=units[1])
    axes.grid(alpha=0.25)
    axes.axhline(0, color="k", linewidth=0.8)
    for i, run in enumerate(runs):
        (steps, cost), (own, reward) = (
            run.points.get((name, "eval"), (np.zeros(0),) * 2) for name in (horizontal, vertical)
        )
        both, at, where = np.intersect1d(steps, own, return_indices=True)
        if len(both):
            axes.plot(cost[at], reward[where], "o-", color=f"C{i}", markersize=3, linewidth=1)
            axes.plot(cost[at][-1:], reward[where][-1:], "o", color=f"C{i}", markersize=8)


def _over_steps(axes: Any, line: Any, runs: Sequence[Run], quantity: Quantity) -> None:
    """Draw one kind of metrics against the step."""
    axes.set(title=quantity.title, xlabel="optimiser step", ylabel=quantity.unit)
    axes.grid(alpha=0.25)
    if quantity.line is not None:
        axes.axhline(quantity.line, color="k", linewidth=0.8)
    metrics = [m for pattern in quantity.metrics for m in _matching(runs, pattern) if find(m) is quantity]
    metrics = list(dict.fromkeys(metrics))
    for i, run in enumerate(runs):
        for j, metric in enumerate(metrics):
            series = {split: points for (name, split), points in run.points.items() if name == metric}
            if len(runs) > 1:
                split = "eval" if len(series.get("eval", ((),))[0]) > 1 else "train" if "train" in series else "eval"
                _draw(axes, split, f"C{i}", series.get(split), _STYLES[j % len(_STYLES)], faint=False)
            else:
                for split, points in sorted(series.items()):
                    _draw(axes, split, f"C{j}", points, "-", faint=True)
    axes.set_xlim(left=0)
    if len(metrics) > 1:
        several = len(runs) > 1
        looks = [
            {"color": "k", "linestyle": _STYLES[j % len(_STYLES)]} if several else {"color": f"C{j}"}
            for j in range(len(metrics))
        ]
        axes.legend([line([], [], **look) for look in looks], map(label, metrics), fontsize=7, framealpha=0.6)


def _matching(runs: Sequence[Run], pattern: str) -> list[str]:
    return sorted({metric for run in runs for metric, _ in run.points if re.fullmatch(pattern, metric)})


def _draw(axes: Any, split: str, colour: str, points: Points | None, style: Any, *, faint: bool) -> None:
    """Draw one series: evaluations as points, training as its running mean, and faintly as it is."""
    if points is None:
        return
    steps, values = points
    if split != "train":
        axes.plot(
            steps, values, marker="o", color=colour, linestyle="--" if faint else style, markersize=4, linewidth=1
        )
        return
    width = max(1, len(values) // 20)
    if width == 1:
        axes.plot(steps, values, color=colour, linestyle=style, linewidth=1.2)
        return
    if faint:
        axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
    mean = np.convolve(values, np.ones(width) / width, "valid")
    axes.plot(steps[width // 2 :][: len(mean)], mean, color=colour, linestyle=style, linewidth=1.4)


if __name__ == "__main__":
    try:
        sys.stdout.write(main(sys.argv[1:]))
    except (ValueError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error

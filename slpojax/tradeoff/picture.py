"""Reward against KL as a picture: what each method is worth at its best, and every method's own runs below.

Knows results and matplotlib, which is imported only when a picture is drawn.
"""

import importlib
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from slpojax.base import Float
from slpojax.tradeoff import best_at, over_seeds
from slpojax.tradeoff.results import Method, mean_path

# Okabe and Ito's palette, which all kinds of colour vision tell apart, without its yellow; then three more. Markers say
# the same again, and the lines of the second half are dashed.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#8C510A", "#7F7F7F", "#882255")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "h")

_ACROSS = 5  # methods beside each other
_ERRORS = 9  # error bars on a curve
_TICKS = (0, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256)
_FEW_TICKS = (0, 0.5, 2, 4, 8, 16, 32, 64, 128, 256)
_LINES = 90  # points of a curve


def draw(
    methods: Sequence[Method],
    pictures: Sequence[pathlib.Path],
    *,
    title: str,
    bound: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]] | None = None,
) -> None:
    """Draw the frontier.

    Above, a curve a method: the largest gain at each KL, the mean over seeds of the best strength, with standard
    deviations; faint marks are all evaluations, means over seeds. Below, each method's strengths, a mark an evaluation.

    Args:
        methods: in the order of the legend.
        pictures: the files to write: .png, .svg or .pdf.
        title: above all.
        bound: KL, and the most that any policy can gain there; None where nobody knows.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError("the picture of the frontier needs matplotlib: `pip install 'slpojax[plot]'`") from error
    across = min(_ACROSS, len(methods))
    down = math.ceil(len(methods) / across)
    figure = figures.Figure(figsize=(12.5, 6.4 + 2.5 * down), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(6.0, 2.5 * down))
    main = above.subplots()
    curves = {method.label: _curve(method) for method in methods}
    for i, method in enumerate(methods):
        _best(main, method, curves[method.label], i)
    if bound is not None:
        main.plot(*bound, color="k", linestyle=":", linewidth=1.6, label="best possible (reference, tilted)")
    _axes(main, methods, _TICKS)
    main.set(
        xlabel="KL to the reference (nats per answer, square-root axis)",
        ylabel="gold reward gained (std of the reference's)",
    )
    main.legend(loc="best", fontsize=9, framealpha=0.9, ncols=2)
    main.set_title(title, fontsize=11)
    small = np.atleast_1d(below.subplots(down, across, sharex=True, sharey=True, squeeze=False)).ravel()
    for i, axes in enumerate(small):
        if i >= len(methods):
            axes.set_visible(False)
            continue
        _strengths(axes, methods[i], list(curves.values()), i)
        _axes(axes, methods, _FEW_TICKS)
    below.supxlabel("KL to the reference", fontsize=9)
    for picture in pictures:
        figure.savefig(picture, dpi=130, metadata={"Date": None} if picture.suffix == ".svg" else None)


def _curve(method: Method) -> Float[np.ndarray, "4 n"]:
    """Return KL, mean, standard deviation and number of seeds of the best strength, over all KL that it reaches."""
    furthest = max(float(run.path.kl.max()) for runs in method.runs.values() for run in runs.values())
    points = []
    for budget in np.linspace(0, math.sqrt(max(furthest, 0.0)), _LINES) ** 2:
        found = over_seeds([*best_at(method.paths, float(budget)).values.values()])
        points.append((budget, found.mean, found.std, found.seeds))
    return np.array(points).T


def _best(axes: Any, method: Method, curve: np.ndarray, i: int) -> None:
    colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
    for runs in method.runs.values():
        (kl, gain), _ = mean_path([*runs.values()])
        axes.plot(kl, gain, marker, color=colour, markersize=3.5, alpha=0.3, markeredgewidth=0)
    kl, mean, std, _ = curve
    axes.plot(kl, mean, color=colour, linewidth=2, linestyle="--" if i % len(COLOURS) >= len(COLOURS) / 2 else "-")
    there = np.flatnonzero(np.isfinite(mean))
    picked = there[np.unique(np.linspace(0, len(there) - 1, _ERRORS).astype(int))] if len(there) else there
    axes.errorbar(
        kl[picked],
        mean[picked],
        np.nan_to_num(std[picked]),
        fmt=marker,
        color=colour,
        markersize=6,
        capsize=2.5,
        linewidth=1.2,
        label=method.label,
        markeredgecolor="white",
        markeredgewidth=0.6,
    )


def _strengths(axes: Any, method: Method, curves: Sequence[np.ndarray], i: int) -> None:
    """Draw the strengths of a method, from pale to strong, before the curves of all."""
    for kl, mean, *_ in curves:
        axes.plot(kl, mean, color="0.85", linewidth=0.8)
    count = len(method.runs)
    for j, (strength, runs) in enumerate(method.runs.items()):
        (kl, gain), (of_kl, of_gain) = mean_path([*runs.values()])
        alpha = 0.35 + 0.65 * (j + 1) / count
        axes.errorbar(
            kl,
            gain,
            np.nan_to_num(of_gain),
            np.nan_to_num(of_kl),
            color=COLOURS[i % len(COLOURS)],
            alpha=alpha,
            marker=MARKERS[j % len(MARKERS)],
            markersize=3.2,
            linewidth=0.9,
            elinewidth=0.6,
            label=strength,
        )
        axes.plot(
            kl[-1:], gain[-1:], MARKERS[j % len(MARKERS)], color=COLOURS[i % len(COLOURS)], markersize=7, alpha=alpha
        )
    axes.set_title(f"{method.label}, {method.short}", fontsize=9)
    axes.legend(fontsize=7, loc="lower right", framealpha=0.6, handlelength=1.2, labelspacing=0.2)
    axes.tick_params(labelsize=7)


def _axes(axes: Any, methods: Sequence[Method], ticks: Sequence[float | int]) -> None:
    """Scale the KL by its square root, whatever a noisy estimate below 0 is."""
    axes.set_xscale("function", functions=(_root, np.square))
    furthest = max(
        float(run.path.kl.max()) for method in methods for runs in method.runs.values() for run in runs.values()
    )
    axes.set_xlim(0, 1.05 * max(furthest, 0.1))
    shown = [tick for tick in ticks if tick <= 1.05 * furthest]
    axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axes.axhline(0, color="k", linewidth=0.6)
    axes.grid(alpha=0.25)


def _root(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(x, 0.0))

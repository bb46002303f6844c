"""The curves of a run as one picture, from its metrics.jsonl.

Knows names of metrics and matplotlib, which is imported only here and only when a picture is drawn.
"""

import importlib
import json
import math
import pathlib
import re
from typing import Any

import numpy as np

# Title, label of the y axis, and which metrics belong there. A panel without data is left out.
PANELS = (
    ("Loss", "loss", r"loss"),
    ("Preference accuracy", "share of pairs", r"rewards/accuracies|mass/(clamped|shift_negligible)"),
    ("Implicit reward", "beta x nats", r"rewards/(chosen|rejected|margins)"),
    ("Log-probability of a response", "nats, sum over tokens", r"logps/(chosen|rejected)"),
    ("Rooted probability mass and its target", "probability", r"mass/(model|target)_.*"),
    ("Way to the target", "nats of the whole response", r"mass/(gap_.*|shift_chosen)"),
    ("Gradient norm before clipping", "norm", r"grad_norm"),
    ("Gold reward", "reward", r".*gold.*"),
    ("Distance from the reference", "nats", r"(.*[/_])?kl([/_].*)?"),
)


def curves(jsonl_path: str | pathlib.Path, png_path: str | pathlib.Path, *, title: str = "") -> None:
    """Draw training and evaluation metrics against the step, a panel for each kind that the run has.

    Training is a faint line with its running mean; other splits are marked points of the same colour.

    Args:
        jsonl_path: the metrics.jsonl of a run.
        png_path: the picture to write.
        title: above all panels.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the file holds no metric of any panel.
    """
    try:
        figures, lines = (importlib.import_module(f"matplotlib.{name}") for name in ("figure", "lines"))
    except ImportError as error:
        raise ImportError("the plot of the curves needs matplotlib: `pip install 'slpojax[plot]'`") from error
    rows = [json.loads(line) for line in pathlib.Path(jsonl_path).read_text().splitlines()]
    panels = [(name, unit, series) for name, unit, which in PANELS if (series := _series(rows, which))]
    if not panels:
        raise ValueError(f"{jsonl_path} holds no metric to draw, such as loss, in its {len(rows)} lines")
    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)
    figure = figures.Figure(figsize=(4.6 * across, 3.2 * down), layout="constrained")
    for i, (name, unit, series) in enumerate(panels, 1):
        axes = figure.add_subplot(down, across, i)
        axes.set(title=name, xlabel="optimiser step", ylabel=unit)
        axes.grid(alpha=0.25)
        axes.set_xlim(0, 1.03 * max(1, max(row["step"] for row in rows)))
        colours = {metric: f"C{j}" for j, metric in enumerate(sorted({metric for metric, _ in series}))}
        for (metric, split), (steps, values) in sorted(series.items()):
            _draw(axes, split, colours[metric], steps, values)
        handles = [lines.Line2D([], [], color=colour) for colour in colours.values()]
        axes.legend(handles, [metric.split("/")[-1] for metric in colours], fontsize=7, framealpha=0.6)
    figure.suptitle(f"{title}\nlines: training and its running mean; points: evaluation".strip(), fontsize=11)
    figure.savefig(png_path, dpi=120)


def _series(rows: list[dict[str, Any]], which: str) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Return (metric, split) -> (steps, values) of the metrics whose whole name matches."""
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        for metric, value in row.items():
            if metric not in ("step", "split") and re.fullmatch(which, metric):
                points.setdefault((metric, row["split"]), []).append((row["step"], value))
    return {key: (np.asarray([s for s, _ in seen]), np.asarray([v for _, v in seen])) for key, seen in points.items()}


def _draw(axes: Any, split: str, colour: str, steps: np.ndarray, values: np.ndarray) -> None:
    """Draw one series."""
    if split != "train":
        axes.plot(steps, values, "o--", color=colour, markersize=4, linewidth=1)
        return
    width = max(1, len(values) // 20)
    if width == 1:
        axes.plot(steps, values, color=colour, linewidth=1.2)
        return
    axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
    mean = np.convolve(values, np.ones(width) / width, "valid")
    axes.plot(steps[width // 2 :][: len(mean)], mean, color=colour, linewidth=1.4)

"""The picture of the curves: it is drawn from what the run has, and says what is missing."""

import json
import sys

import numpy as np
import pytest

from slpojax import plots

pytest.importorskip("matplotlib")


def write(path, steps=200):
    rng, rows = np.random.default_rng(0), []
    for s in range(1, steps + 1):
        x, noise = s / steps, 0.2 * rng.normal(size=4)
        names = (
            "loss",
            "rewards/margins",
            "rewards/accuracies",
            "logps/chosen",
            "logps/rejected",
            "mass/clamped",
            "grad_norm",
        )
        values = (
            0.7 - 0.3 * x + noise[0] / 4,
            x + noise[1],
            0.5 + 0.3 * x,
            -90 - 5 * x,
            -95 - 20 * x + noise[2],
            0.1 * x,
            9 - x,
        )
        rows.append({"step": s, "split": "train"} | dict(zip(names, values, strict=True)))
        if s % 50 == 0:
            rows.append(
                {"step": s, "split": "eval", "loss": 0.7 - 0.2 * x, "rewards/margins": x, "rewards/accuracies": 0.6}
            )
            rows.append({"step": s, "split": "world", "gold_reward": x, "kl": 0.5 * x})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_all_panels_are_drawn(tmp_path):
    write(tmp_path / "metrics.jsonl")
    plots.curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", title="SLPO on a toy")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_short_run_without_evaluation_is_drawn(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "split": "train", "loss": float("nan")}) + "\n")
    plots.curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


def test_nothing_to_draw_says_so(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no metric to draw, such as loss, in its 0 lines"):
        plots.curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")


def test_without_matplotlib_it_says_which_extra_has_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'slpojax\[plot\]'"):
        plots.curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")

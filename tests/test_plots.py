"""The picture of the curves: it is drawn from what the runs have, and says what is missing."""

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
            rows[-1] |= {"world/gold_lift": x, "world/kl": 0.5 * x}
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def axes(monkeypatch):
    """The axes of the last picture that was drawn, by title."""
    figures, made = pytest.importorskip("matplotlib.figure"), {}
    save = figures.Figure.savefig

    def keep(figure, *arguments, **options):
        made.clear()
        made.update({axes.get_title(): axes for axes in figure.axes})
        save(figure, *arguments, **options)

    monkeypatch.setattr(figures.Figure, "savefig", keep)
    return made


def test_a_run_is_drawn_with_units_and_lines_at_chance_and_zero(tmp_path, axes):
    write(tmp_path / "metrics.jsonl")
    assert plots.main([str(tmp_path)]) == f"wrote {tmp_path / 'curves.png'}\n"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    units = {title: (one.get_xlabel(), one.get_ylabel()) for title, one in axes.items()}
    assert units["What the reward costs"] == ("KL to the reference (nats per answer)", "std of the reference's")
    assert units["Log-probability"] == ("optimiser step", "nats per response") and "Loss" in units
    assert "clamped" not in str(axes["Preference accuracy"].get_legend()), "one kind of metric an axis"
    level = {
        title: [line.get_ydata() for line in axes[title].lines if len(set(line.get_ydata())) == 1] for title in axes
    }
    assert [0.5, 0.5] in [list(y) for y in level["Preference accuracy"]]
    assert [0, 0] in [list(y) for y in level["Reward"]]


def test_several_runs_share_a_picture(tmp_path, axes, monkeypatch):
    write(tmp_path / "dpo" / "metrics.jsonl")
    write(tmp_path / "slpo" / "metrics.jsonl", steps=100)
    monkeypatch.chdir(tmp_path)
    assert plots.main(["dpo", str(tmp_path / "slpo" / "metrics.jsonl")]) == "wrote curves.png\n"
    paths = [line for line in axes["What the reward costs"].lines if len(line.get_xdata()) > 2]
    assert [line.get_color() for line in axes["What the reward costs"].lines if line in paths] == ["C0"], (
        "two points are no path"
    )
    (legend,) = axes["Loss"].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dpo", "slpo"]
    plots.main(["dpo", "slpo", "--to=both.svg"])
    assert (tmp_path / "both.svg").exists()


def test_runs_of_one_name_are_told_apart_by_their_folders():
    assert plots._names(["a/run", "b/run"]) == ["a/run", "b/run"] and plots._names(["a/run", "b/other"]) == [
        "run",
        "other",
    ]


def test_a_short_run_without_evaluation_is_drawn(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "split": "train", "loss": float("nan")}) + "\n")
    plots.main([str(tmp_path)])
    assert (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        ("", [], "usage: python -m slpojax.plots RUN"),
        ("", ["run", "--from=3"], "usage: python -m slpojax.plots RUN"),
        ("", ["run"], "run: no metric to draw, such as loss"),
        ("", ["rum"], r"rum: no metrics.jsonl there \(near: run\)"),
        ("", ["."], "no metrics.jsonl there; the folder holds no run"),
        ("[1]\n", ["run"], "line 1: expected an object of numbers with a step and a split"),
        ('{"step": 1, "split": "eval"}\n{"step": 2, "sp\n', ["run"], "line 2: expected an object of numbers"),
        ("", ["run", "--to=curves.docx"], "expected the name of a .png, .pdf or .svg"),
        ("", ["run", "--to=nowhere/curves.png"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, monkeypatch, text, arguments, says):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=says):
        plots.main(arguments)


def test_without_matplotlib_it_says_which_extra_has_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'slpojax\[plot\]'"):
        plots.curves([tmp_path], tmp_path / "curves.png")

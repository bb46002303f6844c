"""What a run came to: the table of before and after, for any run, with words and units."""

import json
import sys

import pytest

from slpojax import objectives, outcome, quantities


def shown(tmp_path, capsys, rows, monkeypatch=None):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome.show(tmp_path, "slpo.shift")
    return capsys.readouterr().out


def cells(text, label):
    (line,) = [line for line in text.splitlines() if line.strip().startswith(label)]
    return line.split()[len(label.split()) :]


def test_the_first_and_the_last_evaluation_stand_side_by_side_with_units(tmp_path, capsys):
    values = {0: (-0.0001765, 0.5), 100: (0.3, 0.25), 200: (1.1167, 0.125)}
    rows = [
        {"step": n, "split": "eval", "world/gold_reward": a, "rewards/accuracies": b, "my/own": n / 7}
        for n, (a, b) in values.items()
    ]
    text = shown(tmp_path, capsys, rows)
    assert (
        "slpo.shift: held-out examples" in text and "step 0" in text and "step 200" in text and "step 100" not in text
    )
    assert cells(text, "gold reward, mean") == ["0.00", "1.12", "nats", "of", "preference"]
    assert cells(text, "pairs ranked right") == ["0.500", "0.125", "share", "of", "pairs"]
    assert cells(text, "my/own") == ["0", "28.57"], "what nobody has named is shown by its name"
    assert max(map(len, text.splitlines())) <= 80 or "curves:" in text
    assert (tmp_path / "curves.png").exists() and text.endswith(f"curves: {tmp_path / 'curves.png'}\n")


def test_without_an_evaluation_the_ends_of_training_are_compared(tmp_path, capsys):
    rows = [{"step": n, "split": "train", "loss": float(n), "tokens_per_second": 5.0} for n in range(1, 31)]
    text = shown(tmp_path, capsys, rows)
    assert "training batches; nothing was held out" in text and "steps 1-3" in text and "steps 28-30" in text
    assert cells(text, "loss") == ["2.0000", "29.0000", "loss"] and "tokens_per_second" not in text


@pytest.mark.parametrize(
    "rows", [[], [{"step": 1, "split": "train", "loss": 1.0}], [{"step": 0, "split": "eval", "loss": 1.0}]]
)
def test_a_run_of_one_step_or_none_is_no_trouble(tmp_path, capsys, rows):
    assert ("loss" in shown(tmp_path, capsys, rows)) == (len(rows) > 0)


def test_the_picture_may_be_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = shown(tmp_path, capsys, [{"step": n, "split": "eval", "loss": 1.0} for n in (0, 1)])
    assert "no picture of the curves: the plot of the curves needs matplotlib" in text


def test_every_metric_of_a_pair_has_words_a_unit_and_one_axis():
    """The table's own metrics, and those that most objectives report."""
    names = {
        name for one in ("slpo.shift", "dpo.sigmoid", "token_level.tdpo1") for name in objectives.build(one).metrics
    }
    for name in ("loss", "grad_norm", "learning_rate", "world/kl", *names):
        assert quantities.find(name) is not None and quantities.label(name) != name or name == "loss", name
    assert quantities.order(["mine", "loss", "world/kl"]) == ["world/kl", "loss", "mine"]


@pytest.mark.parametrize(("training", "held_out", "said"), [(0.94, 0.52, True), (0.7, 0.6, False), (0.5, 0.9, False)])
def test_a_run_that_learns_its_pairs_by_heart_is_told_so(training, held_out, said):
    rows = [{"split": "train", "step": n, "rewards/accuracies": training if n > 18 else 0.5} for n in range(1, 21)]
    rows += [{"split": "eval", "step": n, "rewards/accuracies": held_out} for n in (0, 20)]
    told = outcome.parted(rows)
    assert bool(told) == said and (not said or "94% of the training pairs" in told and "52% of the held-out" in told)
    assert outcome.parted([{"split": "train", "step": 1, "loss": 1.0}]) == ""

"""A run that starts from the last state of another one: two runs in turn are the whole."""

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from configs import base
from slpojax import checkpoint, metrics, settings, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("start"))


def run(folder, output, rows, **changes):
    values = tiny.changes(folder, output) | {
        "data.rows": rows,
        "data.eval_rows": "",
        "data.order": "source",
        "batch_size": 4,
        "steps": 0,
        "epochs": 1.0,
        "schedule": "cosine",
        "schedule_steps": 4,
        "warmup_steps": 1,
        "checkpoint_every": 0,
        **changes,
    }
    train.train(settings.resolve(base.get_config(), values, choices=train.CHOICES))
    rows = metrics.read_jsonl(folder / output / "metrics.jsonl", "train")
    return [(row["loss"], row["learning_rate"]) for row in rows], load_file(folder / output / "hf/model.safetensors")


@pytest.mark.check
def test_two_runs_in_turn_are_the_whole(folder):
    whole, weights = run(folder, "whole", "0:16")
    first, _ = run(folder, "first", "0:8")
    second, same = run(folder, "second", "8:16", start=str(folder / "first"))
    np.testing.assert_allclose(first + second, whole, rtol=2e-6)
    for name, value in weights.items():
        np.testing.assert_allclose(same[name], value, atol=2e-6)

    with pytest.raises(ValueError, match=r"config.start=.*first: the state behind step 2 is not one that this run can"):
        run(folder, "other", "8:16", start=str(folder / "first"), **{"optimizer.name": "adafactor"})


def test_a_start_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config.start=.*: no checkpoints there; give the output folder of a run"):
        checkpoint.last_digest(str(tmp_path))

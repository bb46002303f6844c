"""The program as a whole, on a tiny model and made-up pairs: what it writes, how it resumes, what it refuses."""

import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from configs import base
from slpojax import export, hf, metrics, settings, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("train"))


def configuration(folder, output, **changes):
    values = tiny.changes(folder, output) | changes
    return settings.resolve(base.get_config(), values, choices=train.CHOICES)


def losses(folder, output, split="train"):
    rows = metrics.read_jsonl(folder / output / "metrics.jsonl", split)
    return [(row["step"], row["loss"], row["logps/chosen"]) for row in rows]


@pytest.fixture
def compiled():
    """The names of the programs that JAX compiles while a test runs, in order."""
    names = []

    def listen(event, _, fun_name="", **__):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.check
def test_a_run_that_stops_and_goes_on_is_the_run_that_never_stopped(folder, capsys, compiled):
    train.train(configuration(folder, "whole", steps=6))
    # One program for the reference's log-probs and every evaluation's; none behind the first step, which comes behind
    # the first evaluation, but for the sums over bits, and the parts in which orbax saves, and the export writes, an
    # array of several devices.
    expected = ("log_probs", "objective_step", "step")
    assert {name: compiled.count(f"jit({name})") for name in expected} == dict.fromkeys(expected, 1)
    assert set(compiled[compiled.index("jit(step)") + 1 :]) <= {"jit(slice)", "jit(_layer)", "jit(_of_arrays)"}
    last = metrics.read_jsonl(folder / "whole" / "metrics.jsonl", "train")[-1]
    assert 0 <= last["device_waited_share"] <= 1 and last["process_peak_bytes"] > 2**20
    shown = capsys.readouterr().out
    assert "every margin of the first batch is exactly 0" in shown and "20 read, 20 kept" in shown
    start = metrics.read_jsonl(folder / "whole" / "metrics.jsonl", "eval")[0]
    assert start["step"] == 0 and start["rewards/margins"] == 0 and start["rewards/accuracies"] == 0.5
    assert start["loss"] == pytest.approx(np.log(2), abs=1e-7)

    train.train(configuration(folder, "parts", steps=3))
    train.train(configuration(folder, "parts", steps=6))
    assert "resumed behind step 3 of 6" in capsys.readouterr().out
    assert losses(folder, "parts") == losses(folder, "whole") and len(losses(folder, "whole")) == 6
    assert losses(folder, "parts", "eval")[-1] == losses(folder, "whole", "eval")[-1]
    ours, theirs = (load_file(folder / name / "hf" / "model.safetensors") for name in ("parts", "whole"))
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])
    with pytest.raises(ValueError, match=r"objective.name was 'dpo.sigmoid' and is 'dpo.ipo'"):
        train.train(configuration(folder, "parts", steps=6, **{"objective.name": "dpo.ipo"}))
    again = load_file(export.export(folder / "parts", "newest") / "model.safetensors")
    for name in theirs:
        np.testing.assert_array_equal(again[name], theirs[name])
    assert export.export(folder / "parts", to=folder / "best").name == "best"
    with pytest.raises(ValueError, match="holds no checkpoint of step 4; there are 3, 6"):
        export.export(folder / "parts", "4")
    pairs = (folder / "pairs.jsonl").read_text()
    moved, other = folder / "moved.jsonl", folder / "other.jsonl"
    moved.write_text(pairs)
    train.train(configuration(folder, "parts", steps=6, **{"data.path": str(moved)}))
    assert "resumed behind step 6 of 6" in capsys.readouterr().out
    other.write_text(pairs.replace(" w3", " w4", 1))
    with pytest.raises(ValueError, match=r"step 6 of a run .*: the examples \(train\) changed\. Set this back"):
        train.train(configuration(folder, "parts", steps=6, **{"data.path": str(other)}))


@pytest.mark.check
def test_running_statistics_go_on_where_they_were(folder):
    name = "0.8 * dpo.sigmoid + 0.2 * anchored.bco_pair + sft.token_mean"  # MPO, whose middle term keeps a mean
    for output, stops in (("never", [6]), ("twice", [2, 3, 6])):
        for steps in stops:
            train.train(configuration(folder, output, steps=steps, **{"objective.name": name}))
    never, twice = (metrics.read_jsonl(folder / output / "metrics.jsonl", "train") for output in ("never", "twice"))
    for name in ("loss", "delta", "grad_norm"):
        assert [row[name] for row in twice] == [row[name] for row in never] and len(never) == 6, name
    assert len({row["delta"] for row in never}) == 6


@pytest.mark.check
def test_what_was_exported_trains_on_without_a_reference(folder):
    train.train(configuration(folder, "first", steps=1))
    changes = {"model.path": str(folder / "first" / "hf"), "model.weights": "load", "objective.name": "sft.token_mean"}
    changes |= {"data.candidates": 1, "data.eval_rows": "", "checkpoint_every": -1}
    train.train(configuration(folder, "second", steps=15, **changes))
    assert not list((folder / "second" / "checkpoints").glob("[0-9]*"))
    seen = losses(folder, "second")
    assert [step for step, *_ in seen] == [*range(1, 16)]
    assert np.mean([loss for _, loss, _ in seen[-5:]]) < np.mean([loss for _, loss, _ in seen[:5]]) - 0.3
    assert hf.read_config(folder / "second" / "hf")["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.check
def test_a_tokenizer_from_elsewhere_goes_along(folder, tmp_path):
    from transformers import AutoTokenizer

    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).rename(tmp_path / "tokenizer" / name)
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": 0}')
    where = {"model.path": str(tmp_path / "model"), "data.tokenizer": str(tmp_path / "tokenizer")}
    train.train(configuration(folder, "elsewhere", steps=1, **where, **{"data.eval_rows": ""}))
    exported = folder / "elsewhere" / "hf"
    assert AutoTokenizer.from_pretrained(exported)("w3 w1")["input_ids"] == [4, 2]
    assert (exported / "generation_config.json").exists()  # the model's own


def test_the_objective_that_the_readme_adds_trains_on_eight_devices(folder, monkeypatch, capsys):
    readme = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
    code = re.search(r"say `ideas.py`:\n\n```python\n(.*?)```", readme, re.DOTALL).group(1)
    (folder / "ideas.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    changes = {"objective.name": "ideas.hinge", "objective.margin": 2, "eval_every": 0}
    train.train(configuration(folder, "ideas", steps=2, warmup_steps=3, **changes))
    lines = metrics.read_jsonl(folder / "ideas" / "metrics.jsonl", "train")
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.25e-2, 0.5e-2])
    shown = capsys.readouterr().out
    assert "the warm-up of 3 steps is as long as the run of 2: the learning rate ends at 50% of its peak" in shown
    assert [step for step, *_ in losses(folder, "ideas", "eval")] == [0, 2]  # what eval_every=0 leaves
    assert losses(folder, "ideas")[0][1] == pytest.approx(2.0, abs=1e-5)
    assert losses(folder, "ideas")[1][1] != losses(folder, "ideas")[0][1]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(folder):
    with pytest.raises(
        FloatingPointError, match=r"step \d is not finite: .*Its batch holds the rows \d+, .* lower rate"
    ):
        train.train(configuration(folder, "broken", steps=6, learning_rate=1e30, clip_norm=0.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.path": ""}, r"config.data.path is empty"),
        ({"data.path": "nowhere.jsonl"}, r"nowhere.jsonl"),
        (
            {"reference.mode": "cache"},
            r"unknown config.reference.mode 'cache' .near: cached.; there are cached, online, moving, bema, none",
        ),
        ({"reference.mode": "none"}, r"dpo.sigmoid compares with a reference, but config.reference.mode is 'none'"),
        ({"model.weights": "zeros"}, r"unknown config.model.weights 'zeros'; there are load, random"),
        ({"data.format": "pair"}, r"pairs"),
        ({"data.tokenizer": "nowhere"}, r"config.data.tokenizer='nowhere': no folder"),
        ({"data.row_length": 8}, r"raise data.row_length"),
        ({"batch_size": 64, "epochs": 1.0}, r"do not fill one batch of config.batch_size=64; lower"),
        ({"mesh.data": 3}, r"does not fill 8 devices"),
        (
            {"diagnostics": 4, "data.eval_rows": ""},
            r"config.diagnostics=4 looks at held-out examples, but there are none",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_input_is_refused_with_what_to_do(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        train.train(configuration(folder, "refused", **changes))

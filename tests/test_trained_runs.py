"""Runs that train a part of a model: resumed bit for bit, the same on any mesh, out and in as folders."""

import json
import shutil

import jax
import numpy as np
import programs
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from configs import base
from slpojax import (
    adapters,
    bench,
    checkpoint,
    data,
    evaluate,
    export,
    frozen,
    generate,
    metrics,
    named,
    samples,
    settings,
    train,
    training,
)
from slpojax.parts import load as load_parts
from slpojax.trained import Lora

LORA = {"train.what": "lora", "lora.rank": 4, "lora.alpha": 8.0}
PARTS = {"lora": LORA, "part": {"train.what": "^head/|layers/0/mlp/"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return programs.make(tmp_path_factory.mktemp("trained"))


def configuration(folder, output, **changes):
    values = tiny.changes(folder, output) | {"model.weights": "load", "compiled": str(folder / "compiled")} | changes
    return settings.resolve(base.get_config(), values, choices=train.CHOICES)


def logged(folder, output, split="train"):
    rows = metrics.read_jsonl(folder / output / "metrics.jsonl", split)
    return [{name: row[name] for name in ("step", "loss", "logps/chosen", "rewards/margins")} for row in rows]


def paths_of_a_checkpoint(folder, output):
    """The names of all arrays that the newest checkpoint holds."""
    opened, _, sealed = checkpoint._newest(str(folder / output))
    checkpoint.close(opened)
    return set(sealed["sums"])


@pytest.mark.check
def test_a_run_of_adapters_on_eight_devices_ends_in_a_folder_of_peft_s(folder, capsys):
    changes = LORA | {"lora.beside": "^head/", "data.eval_rows": "", "lora.targets": ("q_proj", "mlp/down")}
    changes |= {"objective.name": "sft.token_mean", "reference.mode": "none", "data.candidates": 1}
    train.train(configuration(folder, "eight", steps=2, **changes))
    shown = capsys.readouterr().out
    assert "2,720 frozen and 784 trained parameters" in shown and "which peft loads beside" in shown
    held = {path.split("/", 1)[1] for path in paths_of_a_checkpoint(folder, "eight") if path.startswith("params/")}
    halves = {f"layers/{path}/lora_{side}" for path in ("attention/query", "mlp/down") for side in "ab"}
    assert held == halves | {"head/weight"}
    written = folder / "eight" / "hf"
    config = json.loads((written / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 8, ["down_proj", "q_proj"])
    assert config["modules_to_save"] == ["lm_head"] and config["base_model_name_or_path"] == str(folder / "model")
    again = configuration(folder, "again", **changes | {"model.path": str(written)})
    found, tensors = bench.first_trained(again, bench.make(again)), load_file(written / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    np.testing.assert_array_equal(found["layers"]["attention"]["query"]["lora_b"][0], tensors[name])
    np.testing.assert_array_equal(found["head"]["weight"], tensors["base_model.model.lm_head.weight"])
    assert np.abs(tensors[name]).max() > 0


@pytest.fixture(scope="module")
def adapter(folder):
    """A folder as peft writes it, without a run: of rank 4, on two linear maps."""
    at = bench.make(configuration(folder, "none"))
    random, lora = np.random.default_rng(0), Lora(4, 8.0, ("q_proj", "down_proj"))
    sizes = {"layers/attention/query": (16, 16), "layers/mlp/down": (16, 24)}
    halves = {f"{path}/lora_a": (1, 4, into) for path, (_, into) in sizes.items()}
    halves |= {f"{path}/lora_b": (1, out, 4) for path, (out, _) in sizes.items()}
    params = named.nested({path: random.normal(size=shape) for path, shape in halves.items()})
    adapters.save(folder / "adapter", params, at.model, lora, base=str(folder / "model"))
    return folder / "adapter"


def damaged(adapter, path, config=None, tensors=None):
    """A copy of an adapter's folder with something changed."""
    shutil.copytree(adapter, path)
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | (config or {})))
    if tensors:
        save_file(tensors(load_file(path / "adapter_model.safetensors")), path / "adapter_model.safetensors")
    return path


def without_one(tensors):
    return dict(list(tensors.items())[1:])


@pytest.mark.parametrize(
    ("config", "tensors", "changes", "message"),
    [
        ({}, None, {"lora.rank": 8}, r"config.lora.rank=8, but the adapter .* has 4; set --config.lora.rank=4"),
        ({}, None, {"lora.alpha": 9.0}, r"config.lora.alpha=9, but the adapter .* has 8; set --config.lora.alpha=8.0"),
        ({}, None, {"lora.targets": ("q_proj",)}, r"config.lora.targets names layers/attention/query, but the adapter"),
        (
            {},
            None,
            {"lora.beside": "^head/"},
            r"config.lora.beside trains head/weight whole, but the adapter",
        ),
        ({"r": 8}, None, {}, r"adapter of another model .* of another shape .*q_proj.lora_A.weight is F32"),
        ({}, without_one, {}, r"is an adapter of another model .* without their other half layers/"),
        ({}, lambda t: {k.replace("q_proj", "w_proj"): v for k, v in t.items()}, {}, r"does not know .*w_proj"),
        (
            {"use_dora": True},
            None,
            {},
            r"adapter_config.json: use_dora=True is not implemented here: merge it",
        ),
        ({"init_lora_weights": "pissa"}, None, {}, r"init_lora_weights='pissa' changes the model's weights, too"),
        ({"peft_type": "IA3"}, None, {}, r"peft_type='IA3'; expected LORA: merge it"),
        ({"lora_alpha": None}, None, {}, r"r=4, lora_alpha=None; expected a whole number and a number above 0"),
        ({"base_model_name_or_path": "gone"}, None, {}, r"config.model.path=.* adapter of 'gone', which is not there"),
        ({"base_model_name_or_path": ""}, None, {}, r"base_model_name_or_path names no model; write its folder there"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(folder, adapter, tmp_path, config, tensors, changes, message):
    path = damaged(adapter, tmp_path / "adapter", config, tensors)
    fits = LORA | {"lora.targets": ("q_proj", "down_proj"), "model.path": str(path)}
    with pytest.raises(ValueError, match=message):
        bench.make(configuration(folder, "refused", **fits | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.frozen_dtype": "bfloat16"},
            r"config.model.frozen_dtype='bfloat16', but config.train.what=all",
        ),
        (LORA | {"model.weights": "random"}, r"config.model.weights=random draws a model .*config.export_merged=true"),
        (LORA | {"reference.mode": "moving"}, r"config.reference.mix=0.6 with train.what=lora: .*reference.mix=1"),
        (
            LORA | {"reference.mode": "moving", "reference.path": "other"},
            r"config.reference.path='other' with config.reference.mode=moving and train.what='lora'",
        ),
        (LORA | {"lora.beside": "norm", "lora.rank": 0}, r"config.lora.rank = 0: expected a whole number from 1 to"),
        ({"train.what": "haed"}, r"config.train.what='haed' is found in no parameter's path \(near: head"),
    ],
)
def test_what_cannot_be_is_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        train.train(configuration(folder, "refused", **changes))


def taken(folder, config, devices, steps=3):
    """The losses of some steps on some devices, the parameters that were trained, and the frozen ones."""
    at, method = bench.make(config, devices=jax.devices()[:devices]), training.method(config)
    parts = load_parts(config, at)
    layout = training.layout(config, method, [part.examples for part in parts], at.grid)
    base_params = bench.base_params(config, at)
    parts, weights, reference, _ = frozen.prepare(config, at, method, layout.scan, parts, base_params)
    setup = training.make(config, at, method, layout, online=weights.reference is not None)
    state = training.first_state(config, at, setup, reference)
    take, losses = training.take(setup, at, parts[0]), []
    stream = data.batches(
        parts[0].examples, layout.train, seed=0, steps=layout.steps, kind=config.data.order, ref=parts[0].ref,
        previous=None, share=at.grid.share,
    )  # fmt: skip
    for _, batch in zip(range(steps), stream, strict=False):
        stepped = take(state, weights, batch)
        state = stepped.state
        losses.append(float(stepped.metrics["loss"]))
    return losses, jax.device_get(state.params), jax.device_get(weights.base)


@pytest.mark.check
@pytest.mark.parametrize(("part", "mode"), [("lora", "online"), ("part", "cached")])
def test_eight_devices_equal_one(folder, tmp_path, part, mode):
    def run(devices, **changes):
        where = {"reference.mode": mode, "reference.cache": str(tmp_path / f"cache on {devices}")}
        return taken(folder, configuration(folder, "none", **PARTS[part] | where | changes), devices)

    one = run(1, **{"mesh.fsdp": 1})
    # Two devices a row of the mesh, and micro-batches: frozen weights are split, and gradients summed, by hand and not.
    eight = run(8, **{"mesh.fsdp": 2, "mesh.tensor": 2, "accumulate": 8})
    np.testing.assert_allclose(eight[0], one[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), eight[1], one[1])
    jax.tree.map(np.testing.assert_array_equal, eight[2], one[2])
    assert len({*one[0]}) == 3


@pytest.fixture(scope="module")
def first(folder):
    """A run of adapters that nobody stopped, which others are compared with and start from."""
    train.train(configuration(folder, "first", steps=4, eval_every=2, diagnostics=4, **LORA))
    return folder / "first"


@pytest.mark.check
def test_a_run_that_stops_and_goes_on_is_the_run_that_never_stopped(folder, first, capsys):
    changes = LORA | {"eval_every": 2, "diagnostics": 4}
    for steps in (2, 4):
        train.train(configuration(folder, "parts", steps=steps, **changes))
    assert "resumed behind step 2 of 4" in capsys.readouterr().out
    for split in ("train", "eval"):
        assert logged(folder, "parts", split) == logged(folder, "first", split)
    again = export.export(folder / "parts", "newest")
    ours, theirs, exported = (
        load_file(path / "adapter_model.safetensors") for path in (folder / "parts/hf", first / "hf", again)
    )
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)
        np.testing.assert_array_equal(exported[name], value)
        assert np.abs(value).max() > 0
    with pytest.raises(ValueError, match="lora.rank was 4 and is 5"):
        train.train(configuration(folder, "parts", steps=4, **changes | {"lora.rank": 5}))
    # With export_merged the same checkpoint is a whole model, of which the linear maps have moved and nothing else.
    train.train(configuration(folder, "parts", steps=4, export_merged=True, **changes))
    assert not (folder / "parts/hf/adapter_config.json").exists()
    start, merged = (load_file(path / "model.safetensors") for path in (folder / "model", folder / "parts/hf"))
    moved = {name for name, value in merged.items() if not np.array_equal(value, start[name])}
    assert moved == {name for name in start if name.endswith("_proj.weight")}


@pytest.mark.check
def test_an_adapter_is_where_the_next_run_starts_and_what_it_is_compared_with(folder, first, capsys):
    last, held = logged(folder, "first", "eval")[-1]["logps/chosen"], {"model.path": str(first / "hf")}

    def began(output, **changes):
        train.train(configuration(folder, output, **{"steps": 1, **changes}))
        return logged(folder, output, "eval")[0], capsys.readouterr().out

    row, shown = began("second", **LORA | held | {"reference.mode": "online"})
    assert row["logps/chosen"] == pytest.approx(last, rel=1e-6) and "exactly 0" in shown
    row, shown = began("merged", **held)  # all weights, from the sum of both
    assert row["logps/chosen"] == pytest.approx(last, rel=1e-5) and "exactly 0" in shown
    row, shown = began("carried", **LORA | {"start": str(first), "reference.path": str(first / "hf")})
    assert row["logps/chosen"] == pytest.approx(last, rel=1e-6) and row["rewards/margins"] == 0
    with pytest.raises(ValueError, match=r"that run trained a part of another model than config.model.path="):
        began("other", **LORA | {"start": str(first), "model.path": str(folder / "other")})


@pytest.mark.check
def test_frozen_weights_in_bfloat16_and_a_reference_that_becomes_the_policy(folder, capsys):
    changes = LORA | {"model.frozen_dtype": "bfloat16", "reference.mode": "moving", "reference.every": 2}
    config = configuration(folder, "narrow", steps=3, **changes | {"reference.mix": 1.0})
    train.train(config)
    assert "every margin of the first batch is exactly 0" in capsys.readouterr().out
    kinds = {path: leaf.dtype for path, leaf in named.flatten(bench.base_params(config, bench.make(config))).items()}
    assert {kind.name for path, kind in kinds.items() if "lora" not in path} == {"bfloat16"}
    assert {kind.name for path, kind in kinds.items() if "lora" in path} == {"float32"}
    assert not [path for path in paths_of_a_checkpoint(folder, "narrow") if "embed" in path or "norm" in path]
    margins = [row["rewards/margins"] for row in logged(folder, "narrow")]
    assert margins[1] != 0 and margins[2] == pytest.approx(0, abs=1e-6)  # it has become the policy behind step 2


@pytest.mark.check
def test_an_evaluation_and_samples_are_of_the_policy(folder, first, tmp_path):
    row = metrics.read_jsonl(first / "metrics.jsonl", "eval")[-1]
    config = evaluate.of_run(str(first), {"evaluate.step": "newest", "evaluate.to": str(tmp_path / "page")})
    page = json.loads((evaluate.run(config) / "report.json").read_text())
    margin = page["sections"]["Held-out preferences"]["numbers"]["reward margin"]
    assert margin["value"] == pytest.approx(row["rewards/margins"], rel=1e-4)

    def drawn(output, **changes):
        asked = {"generate.prompts": str(folder / "pairs.jsonl"), "generate.format": "pairs", "generate.count": 4}
        asked |= {"generate.max_new_tokens": 4, "generate.slots": 8, **changes}
        config = settings.replace(configuration(folder, output, **LORA), asked)
        return [(one.ids, one.logps) for one in samples.read(generate.run(config))]

    assert drawn("a", start=str(first)) == drawn("b", **{"model.path": str(first / "hf")}) != drawn("c")

"""Checkpoint files in and out: nothing lost, nothing silently ignored."""

import functools
import json
import time

import jax
import ml_dtypes
import numpy as np
import pytest
from goldens import make_models as witness
from safetensors.numpy import load_file, save_file

from slpojax import folders, grid, hf, models
from slpojax.folders import exports

CASES = ("neox_default", "neox_sequential_tied", "llama_grouped", "llama_tied", "qwen2", "qwen3")


@functools.cache
def _made(case: str):
    """A config, its model, and parameters of random numbers."""
    config, random = witness.CASES[case], np.random.default_rng(0)
    model = models.build(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return config, model, jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes)


def _equal(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shard_bytes", [5 * 10**9, 9000], ids=["single", "sharded"])
def test_round_trip(case, shard_bytes, tmp_path):
    config, model, params = _made(case)
    hf.save(tmp_path / "a", params, model, config, shard_bytes=shard_bytes)
    back = hf.load(tmp_path / "a", model)
    _equal(back, params)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(back))
    hf.save(tmp_path / "b", back, model, config, shard_bytes=shard_bytes)
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)

    if shard_bytes == 9000:
        index = json.loads((tmp_path / "a" / hf.INDEX).read_text())
        shards = {name: load_file(tmp_path / "a" / name) for name in set(index["weight_map"].values())}
        assert hf.WEIGHTS not in files and len(shards) > 2
        assert all(name in shards[file] for name, file in index["weight_map"].items())
        sizes = {name: sum(t.nbytes for t in tensors.values()) for name, tensors in shards.items()}
        assert index["metadata"]["total_size"] == sum(sizes.values())
        assert all(size <= 9000 or len(shards[name]) == 1 for name, size in sizes.items())
    else:
        assert files == ["config.json", hf.WEIGHTS]


@pytest.mark.parametrize(("dtype", "kind"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_half_precision_files_are_widened_exactly(dtype, kind, tmp_path):
    config, model, params = _made("llama_tied")
    hf.save(tmp_path, params, model, config, dtype=dtype)
    assert all(t.dtype == kind for t in load_file(tmp_path / hf.WEIGHTS).values())
    _equal(hf.load(tmp_path, model), jax.tree.map(lambda x: x.astype(kind).astype(np.float32), params))
    written = hf.read_config(tmp_path)
    assert written["dtype"] == written["torch_dtype"] == dtype
    assert written["architectures"] == ["LlamaForCausalLM"]


def _watch(monkeypatch, name: str, module=hf) -> list[np.ndarray]:
    """What a function of a module returns from here on."""
    function, returned = getattr(module, name), []

    def watched(*args):
        returned.append(function(*args))
        return returned[-1]

    monkeypatch.setattr(module, name, watched)
    return returned


def _on(mesh: tuple[int, int, int], model, params):
    """Parameters as they lie on a mesh."""
    where, _ = grid.tree(grid.make(*mesh), model.sharding, params)
    return jax.tree.map(jax.device_put, params, where)


MESHES = [(1, 8, 1), (2, 2, 2)]


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("case", ["neox_default", "llama_tied"])
def test_every_device_gets_its_slices_and_nothing_is_read_twice(case, mesh, tmp_path, monkeypatch):
    config, model, params = _made(case)
    hf.save(tmp_path, params, model, config)
    slices, parts = _watch(monkeypatch, "_slice"), _watch(monkeypatch, "_read")
    loaded = hf.load(tmp_path, model, grid.make(*mesh))
    _equal(jax.tree.map(np.asarray, loaded), params)
    expected = _on(mesh, model, params)
    jax.tree.map(lambda a, b: _equal(a.sharding, b.sharding), loaded, expected)
    assert sum(x.nbytes for x in slices) == sum(x.nbytes for x in jax.tree.leaves(params))
    # The host has one device's part of one parameter at a time, and never all that is split.
    assert max(x.nbytes for x in parts) == max(x.addressable_data(0).nbytes for x in jax.tree.leaves(expected))


def test_names_of_one_tensor_are_compared_slice_by_slice(tmp_path, monkeypatch):
    config, model, params = _made("llama_tied")
    hf.save(tmp_path, params, model, config)
    tensors = load_file(tmp_path / hf.WEIGHTS)
    table = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": table}, tmp_path / hf.WEIGHTS)
    slices, split = _watch(monkeypatch, "_slice"), grid.make(1, 8, 1)
    _equal(jax.tree.map(np.asarray, hf.load(tmp_path, model, split)), params)
    assert max(x.nbytes for x in slices) < table.nbytes
    table = table.copy()
    table[-1, -1] += 1
    save_file(tensors | {"lm_head.weight": table}, tmp_path / hf.WEIGHTS)
    with pytest.raises(ValueError, match="lm_head.weight differs from model.embed_tokens.weight"):
        hf.load(tmp_path, model, split)


@pytest.mark.parametrize("mesh", MESHES)
def test_an_export_brings_one_layer_of_one_parameter_at_a_time(mesh, tmp_path, monkeypatch):
    config, model, params = _made("neox_default")
    hf.save(tmp_path / "host", params, model, config, shard_bytes=9000)
    gathered = _watch(monkeypatch, "gather", exports)
    hf.save(tmp_path / "mesh", _on(mesh, model, params), model, config, shard_bytes=9000)
    files = sorted((tmp_path / "host").iterdir())
    assert len(files) > 3
    assert all(file.read_bytes() == (tmp_path / "mesh" / file.name).read_bytes() for file in files)
    layers = [leaf if leaf.ndim < 2 else leaf[0] for leaf in jax.tree.leaves(params["layers"])]
    assert max(x.nbytes for x in gathered) == max(x.nbytes for x in (*layers, params["embed"]["weight"]))


def test_an_export_that_breaks_off_leaves_the_older_one(tmp_path, monkeypatch):
    config, model, params = _made("llama_tied")
    hf.save(tmp_path, params, model, config)
    (tmp_path / "notes.txt").write_text("of somebody else")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    written = []

    def full(tensors, file, metadata):
        written.append(file)
        if len(written) > 1:
            raise OSError("no space left on device")
        save_file(tensors, file, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(hf, "save_file", full)
        with pytest.raises(ValueError, match="was not written .*no space.*Make room"):
            hf.save(tmp_path, params, model, config, shard_bytes=9000)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    (tmp_path / ".part").mkdir()
    (tmp_path / ".part" / "model-00001-of-00009.safetensors").write_text("of a process that was killed")
    hf.save(tmp_path, params, model, config)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_second_save_leaves_no_old_files(tmp_path):
    config, model, params = _made("llama_tied")
    hf.save(tmp_path, params, model, config, shard_bytes=9000)
    hf.save(tmp_path, params, model, config)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", hf.WEIGHTS]


def test_no_file_of_an_earlier_export_stays_and_those_of_others_do(tmp_path):
    config, model, params = _made("llama_tied")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "chat_template.json"):
        (source / name).write_text("{}")
    hf.save(tmp_path / "out", params, model, config, beside=hf.Beside(source, {"do_sample": False}, "{{ old }}", (3,)))
    (tmp_path / "out" / "notes.txt").write_text("of somebody else")
    hf.save(tmp_path / "out", params, model, config)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"config.json", hf.WEIGHTS, "notes.txt"}


def test_the_template_that_was_trained_with_is_the_only_one_of_an_export(tmp_path):
    from transformers import AutoTokenizer

    config, model, params = _made("llama_tied")
    source, template = tmp_path / "source", "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    source.mkdir()
    (source / "tokenizer.json").write_text(_TOKENIZER)
    (source / "tokenizer_config.json").write_text('{"eos_token": "b", "chat_template": "{{ old }}"}')
    (source / "chat_template.json").write_text('{"chat_template": "{{ old }}"}')
    hf.save(tmp_path / "out", params, model, config, beside=hf.Beside(source, template=template))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "<Hi>"
    assert tokenizer.eos_token == "b"
    assert "chat_template" not in (tmp_path / "out" / "tokenizer_config.json").read_text()
    hf.save(tmp_path / "out", params, model, config, beside=hf.Beside(source))
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == (source / "tokenizer_config.json").read_text()


_TOKENIZER = (
    '{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, '
    '"post_processor": null, "decoder": null, "truncation": null, "padding": null, '
    '"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}'
)


@pytest.mark.parametrize(
    ("model_s", "generation_s", "ends", "expected"),
    [
        (2, {"eos_token_id": [1, 2]}, (0,), ([0, 2], [0, 1, 2])),
        (2, {"eos_token_id": 2}, (2,), (2, 2)),
        (None, None, (7,), (7, 7)),
        ([5, 6], None, (), ([5, 6], None)),
        (2, {"do_sample": True}, (4,), ([4, 2], 4)),
    ],
)
def test_generation_stops_at_what_ended_the_responses_and_where_it_did_before(
    tmp_path, model_s, generation_s, ends, expected
):
    config, model, params = _made("llama_tied")
    config = config | ({"eos_token_id": model_s} if model_s is not None else {})
    out = tmp_path / "out"
    hf.save(out, params, model, config, beside=hf.Beside(generation=generation_s or {}, ends=ends))
    file = out / "generation_config.json"
    generation = json.loads(file.read_text()) if file.is_file() else {}
    assert (hf.read_config(out).get("eos_token_id"), generation.get("eos_token_id")) == expected
    assert generation.get("do_sample") == (generation_s or {}).get("do_sample")


def test_tokenizer_and_generation_config_go_along(tmp_path):
    config, model, params = _made("llama_tied")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "pytorch_model.bin"):
        (source / name).write_text("{}")
    hf.save(tmp_path / "out", params, model, config, beside=hf.Beside(source, {"do_sample": False}))
    copied = {file.name for file in (tmp_path / "out").iterdir()} - {"config.json", hf.WEIGHTS}
    assert copied == {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}


@pytest.fixture
def neox(tmp_path):
    """A model, its folder, its parameters, and a function that rewrites the file with changed tensors."""
    config, model, params = _made("neox_default")
    hf.save(tmp_path, params, model, config)
    tensors = load_file(tmp_path / hf.WEIGHTS)

    def change(drop=(), **add):
        kept = {name: t for name, t in tensors.items() if name not in drop}
        save_file(kept | {name.replace("__", "."): t for name, t in add.items()}, tmp_path / hf.WEIGHTS)

    return model, tmp_path, params, tensors, change


def test_old_buffers_and_the_other_name_of_the_head_are_known(neox):
    model, folder, params, tensors, change = neox
    change(
        drop=["embed_out.weight"],
        lm_head__weight=tensors["embed_out.weight"],
        gpt_neox__layers__0__attention__bias=np.ones((1, 1, 4, 4), bool),
        gpt_neox__layers__1__attention__masked_bias=np.array(-1e9, np.float32),
        gpt_neox__layers__1__attention__rotary_emb__inv_freq=np.ones(4, np.float32),
    )
    _equal(hf.load(folder, model), params)


@pytest.mark.parametrize(
    ("drop", "add", "message"),
    [
        (["gpt_neox.final_layer_norm.bias"], {}, "Missing: gpt_neox.final_layer_norm.bias. Unknown: none"),
        (["embed_out.weight"], {}, "Missing: embed_out.weight or lm_head.weight"),
        ([], {"gpt_neox__layers__2__mlp__dense_h_to_4h__bias": np.ones(3)}, "Unknown: gpt_neox.layers.2.mlp"),
        ([], {"gpt_neox__final_layer_norm__bias": np.ones(3, np.float32)}, r"final_layer_norm.bias is F32\[3\]"),
        ([], {"gpt_neox__final_layer_norm__bias": np.ones(32, np.int8)}, r"bias is I8\[32\].*If quantised: take"),
        ([], {"lm_head__weight": np.ones((97, 32), np.float32)}, "lm_head.weight differs from embed_out.weight"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(neox, drop, add, message):
    model, folder, _, _, change = neox
    change(drop, **add)
    with pytest.raises(ValueError, match=message):
        hf.load(folder, model)


def test_a_tied_head_in_the_file_must_be_the_embedding(tmp_path):
    config, model, params = _made("llama_tied")
    hf.save(tmp_path, params, model, config)
    tensors = load_file(tmp_path / hf.WEIGHTS)
    assert "lm_head.weight" not in tensors
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, tmp_path / hf.WEIGHTS)
    _equal(hf.load(tmp_path, model), params)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, tmp_path / hf.WEIGHTS)
    with pytest.raises(ValueError, match="lm_head.weight differs from model.embed_tokens.weight"):
        hf.load(tmp_path, model)


def test_an_index_that_lies_is_an_error(tmp_path):
    config, model, params = _made("llama_tied")
    hf.save(tmp_path, params, model, config, shard_bytes=9000)
    index = json.loads((tmp_path / hf.INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"]
    (tmp_path / hf.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="disagree about model.norm.weight"):
        hf.load(tmp_path, model)
    (tmp_path / index["weight_map"]["model.embed_tokens.weight"]).unlink()
    with pytest.raises(ValueError, match=f"{tmp_path}: no model-00001-of"):
        hf.load(tmp_path, model)


def test_parameters_of_another_model_are_not_exported(tmp_path):
    config, model, params = _made("llama_tied")
    less = {name: part for name, part in params.items() if name != "final_norm"}
    with pytest.raises(ValueError, match="not the model's: final_norm/weight"):
        hf.save(tmp_path, less, model, config)
    with pytest.raises(ValueError, match="dtype 'int8'.*float32, float16, bfloat16"):
        hf.save(tmp_path, params, model, config, dtype="int8")


@pytest.mark.parametrize("name", ["nobody/has-this-model", "/no/such/folder", "no/such/folder/either"])
def test_resolve_fails_fast_and_says_what_to_do(name, tmp_path):
    assert hf.resolve(tmp_path) == tmp_path
    with pytest.raises(ValueError, match="no model given"):
        hf.resolve("")
    start = time.monotonic()
    with pytest.raises(ValueError, match=f"config.model.path='{name}': no folder .*Give a local folder"):
        hf.resolve(name)
    assert time.monotonic() - start < 10


def test_a_model_that_is_not_there_is_refused_with_what_resembles_it(tmp_path, monkeypatch):
    for name in ("models/pythia-70m", "models/pythia-160m", "models/llama"):
        (tmp_path / name).mkdir(parents=True)
    near = f"near: .*{tmp_path}/models/pythia-70m"
    with pytest.raises(ValueError, match=near):
        hf.resolve(tmp_path / "models" / "pythia_70m")
    with pytest.raises(ValueError, match=rf"near: {tmp_path}/models\)"):  # the first part that is wrong, not the last
        hf.resolve(tmp_path / "model" / "pythia-70m")
    monkeypatch.chdir(tmp_path / "models")
    with pytest.raises(ValueError, match=r"config.data.tokenizer='lama'.*near: llama\)"):
        hf.resolve("lama", key="data.tokenizer")
    (tmp_path / "hub" / "models--EleutherAI--pythia-2.8b").mkdir(parents=True)
    monkeypatch.setattr(folders.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(folders, "snapshot_download", _offline)
    with pytest.raises(ValueError, match=r"near: EleutherAI/pythia-2.8b\)"):
        hf.resolve("EleutherAI/pythia-2.8")


def _offline(*args, **kwargs):
    raise folders.OfflineModeIsEnabled


def test_a_folder_without_config_or_weights(tmp_path):
    with pytest.raises(ValueError, match=r"no .*config\.json"):
        hf.read_config(tmp_path)
    with pytest.raises(ValueError, match=r"no model\.safetensors; expected"):
        hf.load(tmp_path, _made("llama_tied")[1])

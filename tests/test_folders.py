"""Model folders as people have them: found, cut, damaged or foreign; what cannot be used is one line with a way on."""

import json
import struct

import jax
import numpy as np
import pytest
from fault_tools import attempt
from goldens import make_models as witness
from safetensors.numpy import load_file, save_file

from configs import base
from slpojax import bench, folders, hf, models, settings, train

CONFIG = witness.CASES["llama_tied"]


@pytest.fixture(scope="module")
def model():
    return models.build(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture
def folder(tmp_path, params, model):
    hf.save(tmp_path, params, model, CONFIG)
    return tmp_path


def refused(call, *words: str) -> None:
    kind, message = attempt(call)
    assert kind == "refused"
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"model_type": "llama", ', ("damaged or cut at line 1", "download it again")),
        (b"[]", ("holds a list", "JSON object")),
        (b'{"model_type": "\xff"}', ("cannot be read", "UnicodeDecodeError")),
        (b'{"a": ' + b"[" * 100_000, ("cannot be read", "RecursionError")),
        (b'{"a": ' + b"9" * 5000 + b"}", ("cannot be read",)),
        (b"", ("damaged or cut",)),
    ],
    ids=["cut", "list", "latin-1", "deep", "digits", "empty"],
)
def test_a_config_that_is_no_json_object(tmp_path, content, words):
    (tmp_path / "config.json").write_bytes(content)
    refused(lambda: hf.read_config(tmp_path), str(tmp_path / "config.json"), *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, ("'bitsandbytes'", "dequantize()")),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ("'gptq'", "16 bits")),
        ({"quantization_config": {"quant_method": "fp8"}}, ("'fp8'",)),
        ({"architectures": ["LlamaForSequenceClassification"]}, ("a classifier or reward model", "causal")),
    ],
    ids=["bitsandbytes", "gptq", "fp8", "reward model"],
)
def test_a_config_of_something_else(folder, change, words):
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    refused(lambda: hf.read_config(folder), *words)


def test_an_adapter_names_the_model_that_it_belongs_to(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "my/stories"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    for call in (hf.read_config, folders.tensor_files):
        refused(lambda call=call: call(tmp_path), "adapter (PEFT) of 'my/stories'", "merge_and_unload()")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", ("pickled by PyTorch", "save_pretrained(NEW)")),
        ("consolidated.00.pth", ("layout of their maker's", "upload for transformers")),
        ("stories-Q4_K_M.gguf", ("llama.cpp", "original upload")),
        ("tf_model.h5", ("TensorFlow", "safetensors")),
        ("flax_model.msgpack", ("Flax", "safetensors")),
        ("checkpoint-500/config.json", ("give that folder", "checkpoint-500")),
    ],
)
def test_weights_in_another_format_are_named(tmp_path, name, words):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"\x80")
    refused(lambda: folders.tensor_files(tmp_path), f"{tmp_path}: no model.safetensors", *words)


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-100], lambda b: b"", lambda b: b"\x80\x04\x95abc", lambda b: struct.pack("<Q", 2**60) + b[8:]],
    ids=["cut", "empty", "a pickle", "a header that is too large"],
)
def test_weights_that_are_damaged(folder, model, damage):
    file = folder / hf.WEIGHTS
    file.write_bytes(damage(file.read_bytes()))
    refused(lambda: hf.load(folder, model), str(file), "no whole safetensors file", "download it again")


def test_weights_of_eight_bits(folder, model):
    file = folder / hf.WEIGHTS
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    name = "model.norm.weight"
    header[name]["shape"], header[name]["dtype"] = [4 * header[name]["shape"][0]], "F8_E4M3"
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    refused(lambda: hf.load(folder, model), name, "F8_E4M3", "dequantize()")


@pytest.mark.parametrize(
    "index",
    [
        "{}",
        '{"weight_map": 3}',
        *(f'{{"weight_map": {{"a": {x}}}}}' for x in ("3", '"../x"', f'"{300 * "x"}"')),
        '{"we',
    ],
    ids=["nothing", "number", "no name", "outside", "long", "cut"],
)
def test_an_index_that_names_no_files_of_the_folder(folder, model, index):
    (folder / hf.WEIGHTS).unlink()
    (folder / hf.INDEX).write_text(index)
    refused(lambda: hf.load(folder, model), str(folder / hf.INDEX), "again")


def test_one_file_goes_before_a_stale_index_as_in_transformers(folder, model, params, capsys):
    (folder / hf.INDEX).write_text('{"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}')
    jax.tree.map(np.testing.assert_array_equal, hf.load(folder, model), params)
    assert f"{hf.INDEX} beside it is not" in capsys.readouterr().out


def test_a_random_model_downloads_no_weights(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(folders, "snapshot_download", lambda name, **more: asked.update(more) or str(tmp_path))
    folders.resolve("owner/name", files=folders.SMALL)
    assert "config.json" in asked["allow_patterns"] and not any("safetensors" in p for p in asked["allow_patterns"])


@pytest.mark.parametrize(
    "key", ["compiled", "model.path", "data.path", "data.tokenizer", "reference.path", "reference.previous"]
)
def test_urls_that_are_not_read_are_refused_at_once(key):
    config = settings.resolve(base.get_config(), {key: "az://box/run"}, choices=train.CHOICES)
    refused(lambda: bench.refuse(config), f"config.{key}='az://box/run'", "a local path, or gs:// or s3://")


@pytest.mark.parametrize("key", ["data.cache", "data.samples"])
def test_keys_that_are_local_refuse_buckets(key):
    config = settings.resolve(base.get_config(), {key: "gs://bucket/run"}, choices=train.CHOICES)
    refused(lambda: bench.refuse(config), f"config.{key}='gs://bucket/run'", "expected a local path")


def test_the_dtype_of_an_export_is_that_of_the_folder_or_refused(folder, model, params):
    assert hf.stored_dtype(folder, CONFIG) == "float32"
    half = {name: tensor.astype(np.float16) for name, tensor in load_file(folder / hf.WEIGHTS).items()}
    save_file(half, folder / hf.WEIGHTS)
    assert hf.stored_dtype(folder, CONFIG) == "float16"
    save_file(half | {"model.norm.weight": np.ones(32, np.float32)}, folder / hf.WEIGHTS)
    assert hf.stored_dtype(folder, CONFIG) == "float32"  # of several the one that loses nothing
    (folder / hf.WEIGHTS).unlink()
    assert hf.stored_dtype(folder, CONFIG | {"torch_dtype": "bfloat16"}) == "bfloat16"
    assert hf.stored_dtype(folder, CONFIG) == "float32"
    large = jax.tree.map(lambda x: 1e6 * x, params)
    refused(lambda: hf.save(folder, large, model, CONFIG, dtype="float16"), "float16 cannot hold", "export_dtype")

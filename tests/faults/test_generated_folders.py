"""Generated config.json and damaged model folders: read as they are, or refused in one line that names the place."""

import copy
import json
import pathlib
import shutil
import struct
from typing import Any

import jax
import numpy as np
import pytest
from fault_tools import SECRET, attempt
from hypothesis import given, settings
from hypothesis import strategies as st
from published import PUBLISHED

from slpojax import hf, models
from slpojax.named import flatten

pytestmark = pytest.mark.check

SMALL = {
    "model_type": "llama",
    "vocab_size": 13,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.integers(-2, 40)
    | st.floats()
    | st.sampled_from(["", "gelu", "silu", "linear", "dynamic", "llama3", "yarn", "1", SECRET[:4], "x" * 1500])
)
VALUES = st.recursive(SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3))
ROPES = st.dictionaries(
    st.sampled_from(
        "rope_type type rope_theta factor low_freq_factor high_freq_factor original_max_position_embeddings "
        "partial_rotary_factor beta".split()
    ),
    SCALARS | st.floats(0.1, 1e6),
    max_size=6,
)
MORE = ("rope_parameters", "rope_scaling", "head_dim", "layer_types", "sliding_window", "use_sliding_window", "odd")
MODELS = [PUBLISHED[name].config for name in ("pythia-14m", "Llama-3.2-3B", "Mistral-7B-v0.1", "Qwen2.5-1.5B")]


@st.composite
def configs(draw) -> dict[str, Any]:
    """A public config with some of its keys changed, added or left out."""
    config = copy.deepcopy(draw(st.sampled_from(MODELS)))
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from([*config, *MORE]))
        config[key] = draw(ROPES | VALUES if key.startswith("rope_") else VALUES)
        if draw(st.integers(0, 5)) == 0:
            del config[key]
    return config


@given(configs())
@settings(max_examples=1200)
def test_a_config_is_read_as_transformers_reads_it_or_refused(outcomes, config):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    def read():
        return models.find_family(str(config.get("model_type"))).Config.from_hf(config, 512)

    kind, ours = attempt(read)
    outcomes[kind] += 1
    if kind == "refused":
        return
    heads = config["num_attention_heads"]
    assert ours.vocabulary == config["vocab_size"] and ours.width == config["hidden_size"] and ours.heads == heads
    assert 0 < ours.eps < np.inf and len(ours.rope.frequencies) * 2 <= ours.head_dim and ours.heads % ours.kv_heads == 0
    assert np.isfinite(ours.rope.frequencies).all() and min(ours.rope.frequencies) > 0
    try:
        theirs = CONFIG_MAPPING[config["model_type"]].from_dict(config)
    except Exception:  # it has rules of its own, and its validation reaches keys that nobody reads
        outcomes["accepted, which transformers refuses"] += 1
        return
    neox = config["model_type"] == "gpt_neox"
    assert ours.eps == (theirs.layer_norm_eps if neox else theirs.rms_norm_eps)
    assert ours.tied == theirs.tie_word_embeddings and ours.activation == theirs.hidden_act
    assert neox or ours.kv_heads == theirs.num_key_value_heads


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model, and its folder with one file and with several."""
    path = tmp_path_factory.mktemp("whole")
    model = models.build(SMALL)
    shapes, random = jax.eval_shape(model.init, jax.random.key(0)), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes)
    hf.save(path / "one", params, model, SMALL)
    hf.save(path / "several", params, model, SMALL, shard_bytes=1200)
    return model, path, params


def tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """What the files of a folder say, read without any library."""
    kinds, found = {"F32": np.float32, "F16": np.float16}, {}
    for file in folder.glob("*.safetensors"):
        content = file.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        for name, entry in json.loads(content[8 : 8 + size]).items():
            if name != "__metadata__":
                a, b = entry["data_offsets"]
                kind = kinds[entry["dtype"]]
                found[name] = np.frombuffer(content[8 + size + a : 8 + size + b], kind).reshape(entry["shape"])
    return found


@st.composite
def damages(draw):
    """A name of a damage and what does it to a folder."""
    kind = draw(st.sampled_from(["cut", "flip", "header", "index", "gone", "json"]))
    seed, share = draw(st.integers(0, 2**32 - 1)), draw(st.floats(0, 1))
    change = draw(st.sampled_from(["dtype", "shape", "name", "offsets", "drop", "junk"]))
    return kind, seed, share, change, draw(VALUES)


def damage(folder: pathlib.Path, kind: str, seed: int, share: float, change: str, value: Any) -> None:
    random = np.random.default_rng(seed)
    weights = sorted(folder.glob("*.safetensors"))
    file = weights[seed % len(weights)]
    content = bytearray(file.read_bytes())
    if kind == "cut":
        file.write_bytes(content[: int(share * len(content))])
    elif kind == "flip":
        content[int(share * (len(content) - 1))] ^= 1 << int(random.integers(8))
        file.write_bytes(content)
    elif kind == "gone":
        every = sorted(folder.iterdir())
        every[seed % len(every)].unlink()
    elif kind == "json":
        other = folder / ["config.json", hf.INDEX][seed % 2]
        text = other.read_bytes() if other.exists() else b"{}"
        other.write_bytes(text[: int(share * len(text))] if change != "junk" else json.dumps(value).encode())
    elif kind == "index":
        index = folder / hf.INDEX
        if index.exists():
            said = json.loads(index.read_text())
            name = sorted(said["weight_map"])[seed % len(said["weight_map"])]
            said["weight_map"][name] = value if change != "drop" else "../config.json"
            index.write_text(json.dumps(said))
    else:
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        name = sorted(set(header) - {"__metadata__"})[seed % (len(header) - ("__metadata__" in header))]
        if change == "drop":
            del header[name]
        elif change == "name":
            header[f"{SECRET[:4]}.{name}"] = header.pop(name)
        elif change == "junk":
            header[name] = value
        else:
            key = {"dtype": "dtype", "shape": "shape", "offsets": "data_offsets"}[change]
            header[name][key] = ["F16", "I8", "F8_E4M3", "BF16"][seed % 4] if change == "dtype" else value
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


@given(st.sampled_from(["one", "several"]), damages())
@settings(max_examples=600)
def test_a_damaged_folder_gives_what_its_files_say_or_is_refused(outcomes, whole, base, how):
    path, params = whole[1:]
    folder = path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(path / base, folder)
    damage(folder, *how)

    def read():
        config = hf.read_config(folder)
        again = whole[0] if config == json.loads((path / base / "config.json").read_text()) else models.build(config)
        return again, hf.load(folder, again)

    kind, got = attempt(read)
    outcomes[f"{kind}: {how[0]}"] += 1
    if kind == "accepted":
        model, loaded = got
        assert jax.tree.structure(loaded) == jax.tree.structure(params)
        held, flat = tensors(folder), flatten(loaded)
        for line in model.tensors:
            leaf = flat.get(line.param)
            for layer in range(SMALL["num_hidden_layers"]) if leaf is not None and "{}" in line.file else (None,):
                name, value = line.file.format(layer), leaf if layer is None else leaf[layer]
                if name in held and value is not None:
                    np.testing.assert_array_equal(value, held.pop(name).astype(np.float32), err_msg=name)
        assert not held

"""Models against numbers of transformers, mixed precision, options, and families of other packages."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import make_models as witness
from model_tools import cross_entropy, logits_of, named, plain
from safetensors.numpy import save_file

from slpojax import grid, hf, models
from slpojax.base import ADAPTER, NARROW
from slpojax.named import flatten

_SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 40,
    "initializer_range": 0.3,
}
CONFIGS = {
    "llama": _SMALL | {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt_neox": _SMALL | {"model_type": "gpt_neox", "rotary_pct": 0.5},
}


def _pull(model, rows):
    """Parameters -> ((loss, logits), gradient), compiled."""
    return jax.jit(jax.value_and_grad(lambda p: cross_entropy(model, p, rows), has_aux=True))


@pytest.mark.parametrize(
    "case", [*witness.COMMITTED[:3], *(pytest.param(case, marks=pytest.mark.check) for case in witness.COMMITTED[3:])]
)
def test_equals_transformers(case, tmp_path):
    golden = json.loads((witness.FOLDER / f"{case}.json").read_text())
    config = golden["config"]
    assert config == witness.CASES[case]
    tensors = {name: witness.weights(name, g["shape"]) for name, g in golden["gradients"].items()}
    save_file(tensors, tmp_path / hf.WEIGHTS)
    model = models.build(config)
    params, rows = hf.load(tmp_path, model), plain(witness.tokens(case))

    (_, logits), gradient = _pull(model, rows)(params)

    expected = np.asarray(golden["logits"])
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
    for name, value in named(gradient, model, config, tmp_path / "gradient").items():
        g = golden["gradients"][name]
        assert np.linalg.norm(value) == pytest.approx(g["norm"], rel=1e-4), name
        assert witness.probe(name, value) == pytest.approx(g["probe"], abs=1e-4 * g["norm"]), name


@pytest.mark.check
@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_bfloat16_computes_near_float32_and_keeps_float32_gradients(name):
    rows = plain(np.random.default_rng(0).integers(0, 61, (2, 24)))
    config = CONFIGS[name] | {"initializer_range": 0.1}
    exact, half = models.build(config), models.build(config, dtype="bfloat16", remat="layer")
    params = jax.jit(half.init)(jax.random.key(1))
    assert jax.eval_shape(half.apply, params, rows)[0].dtype == jnp.bfloat16
    (loss, _), gradient = _pull(half, rows)(params)
    (expected, _), exact_gradient = _pull(exact, rows)(params)
    assert float(loss) == pytest.approx(float(expected), rel=1e-2)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact_gradient), strict=True):
        assert a.dtype == jnp.float32
        # 8 bits of mantissa through two layers and back: a few per cent of the tensor's norm.
        assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)


@pytest.mark.parametrize("case", [*witness.COMMITTED, "llama_mlp_bias", "mistral_no_window"])
def test_tables_cover_every_parameter(case):
    model = models.build(witness.CASES[case])
    shapes = flatten(jax.eval_shape(model.init, jax.random.key(0)))
    rules = dict(model.sharding)
    beside = re.compile(f"/({'|'.join((*ADAPTER, NARROW))})\\$$")  # adapters, and the scales of codes of few bits
    assert {f"^{name}$" for name in shapes} == {rule for rule in rules if not beside.search(rule)}
    for name in model.linear:
        assert rules[f"^{name}/{NARROW}$"] == rules[f"^{name}/weight$"]
    for name, leaf in shapes.items():
        assert len(rules[f"^{name}$"]) in (0, leaf.ndim), name
    unembed = jax.eval_shape(model.unembed, jax.eval_shape(model.init, jax.random.key(0)))
    assert unembed.shape == (witness.CASES[case]["hidden_size"], 97)


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (
            "llama",
            {"model_type": "lama"},
            r"unknown model_type of config.json 'lama' \(near: llama.*\); there are gemma2, gemma3_text, gpt_neox",
        ),
        ("llama", {"hidden_act": "xielu"}, "hidden_act of config.json 'xielu'.*silu"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
            "rope_type='longrope'.*linear, llama3, yarn",
        ),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "rope_type='linear' needs factor"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}}, "does not know beta"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "differ between layer types"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("llama", {"num_key_value_heads": 3}, "num_attention_heads=8 is no multiple of 3"),
        ("llama", {"hidden_size": None}, "hidden_size=None"),
        ("llama", {"quantization_config": {"bits": 4}}, "not understood: quantization_config"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout=0.1.*no dropout"),
        ("gpt_neox", {"rotary_emb_base": 100, "rope_theta": 10}, "contradicts"),
        ("gpt_neox", {"hidden_size": 36}, "hidden_size=36 is not a multiple"),
        ("gpt_neox", {"rotary_pct": 0.25, "num_attention_heads": 16}, "0 of 2 head dimensions"),
        ("gemma3", {"attn_logit_softcapping": 2.0}, "attn_logit_softcapping=2, but gemma3_text has no cap"),
        ("gemma2", {"attn_logit_softcapping": -1.0}, "attn_logit_softcapping=-1.0; expected a finite number above 0"),
        ("gemma3", {"rope_parameters": {"rope_theta": 5.0}}, "which rope_parameters has full_attention and sliding"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers=.*expected a list with 1 for each of 4 layers"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 2 layers"),
        ("qwen2", {"layer_types": ["linear_attention"] * 2}, "layer_types has linear_attention; expected a list of"),
    ],
)
def test_an_option_that_is_not_supported_is_named(base, change, message):
    bases = witness.CASES | CONFIGS
    with pytest.raises(ValueError, match=message):
        models.build(bases[base] | change)


def test_what_a_shorter_run_allows():
    models.build(witness.CASES["mistral_long_window"] | {"sliding_window": 16}, max_length=16)
    with pytest.raises(ValueError, match="unknown model.dtype 'float64'.*; there are float32, bfloat16"):
        models.build(CONFIGS["llama"], dtype="float64")
    with pytest.raises(ValueError, match="unknown model.remat 'full'.*; there are none, dots, layer, offload"):
        models.build(CONFIGS["llama"], remat="full")


FAMILY = """
from slpojax.models import llama
from slpojax.models.llama import NORM, TENSORS, Block

ARCHITECTURES = {"other": "OtherForCausalLM"}


class Config:
    from_hf = staticmethod(lambda config, length: llama.Config.from_hf({**config, "model_type": "llama"}, length))
"""


def test_a_family_of_another_package(tmp_path, monkeypatch):
    (tmp_path / "other_family.py").write_text(FAMILY)
    (tmp_path / "no_family.py").write_text("Config = None")
    monkeypatch.syspath_prepend(tmp_path)
    config = CONFIGS["llama"] | {"model_type": "other", "architectures": ["OtherForCausalLM"]}
    model, same = models.build(config, family="other_family"), models.build(CONFIGS["llama"])
    params, rows = jax.jit(same.init)(jax.random.key(0)), plain([[1, 2, 3]])
    np.testing.assert_array_equal(logits_of(model, params, rows), logits_of(same, params, rows))
    hf.save(tmp_path / "out", params, model, config)
    assert hf.read_config(tmp_path / "out")["architectures"] == ["OtherForCausalLM"]
    jax.tree.map(np.testing.assert_array_equal, hf.load(tmp_path / "out", model), params)
    with pytest.raises(ValueError, match="unknown model_type of config.json 'other'.*by model.family=package.module"):
        models.build(config)
    with pytest.raises(ValueError, match="does not know model_type='llama'.*it knows other"):
        models.build(CONFIGS["llama"], family="other_family")
    with pytest.raises(ValueError, match="lacks ARCHITECTURES, Block, NORM, TENSORS"):
        models.build(config, family="no_family")


def test_an_old_jax_does_not_offload_on_several_devices(monkeypatch):
    devices = grid.make(1, 2, 1, devices=jax.devices()[:2])
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 1))
    with pytest.raises(ValueError, match="offload' on 2 devices takes JAX 0.11.*Set model.remat='layer'"):
        models.build(CONFIGS["llama"], remat="offload", grid=devices)

"""Frozen weights of few bits: their values, in every family, and whole runs beside them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
import tiny
from laws.test_every_family import CONFIGS, FIRST
from model_tools import cross_entropy, logits_of, plain
from safetensors.numpy import load_file

from configs import base
from slpojax import bench, grid, hf, metrics, models, named, quantised, settings, train, trained
from slpojax.base import NARROW
from slpojax.quantised import Narrow
from slpojax.trained import Lora

# The values of nf4, from QLoRA's appendix E.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
    *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
# All values that a block whose largest size is 1 can have.
VALUES = {"int8": np.arange(-128, 128) / 127.5, "int4": np.arange(-8, 8) / 7.5, "nf4": np.array(NF4)}


@pytest.mark.parametrize("kind", quantised.KINDS)
@pytest.mark.parametrize("into", [128, 88, 7])
def test_every_number_becomes_the_nearest_value_of_its_block(kind, into):
    weight = np.random.default_rng(0).normal(0, 0.1, (2, 6, into)).astype(np.float32)
    made, size = quantised.narrow(jnp.asarray(weight), kind), quantised.block(into)
    assert made.shape == weight.shape and made.scale.shape == (2, 6, into // size)
    blocks = weight.astype(np.float64).reshape(2, 6, -1, size)
    top = np.abs(blocks).max(-1, keepdims=True)
    nearest = np.abs((blocks / top)[..., None] - VALUES[kind]).min(-1) * top
    wide = np.asarray(made.wide(), np.float64).reshape(blocks.shape)
    np.testing.assert_allclose(np.abs(wide - blocks), nearest, atol=1e-6)
    assert np.abs(wide - blocks).max() > 0
    for number in range(2):
        np.testing.assert_array_equal(made.layer(number), made.wide()[number])
    like = quantised.like(weight.shape, kind)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(lambda x: (x.shape, x.dtype), like)


def narrowed(model, params, kind):
    """Parameters with the codes of all linear maps, and the same with the wide weights that these stand for."""
    codes, wide = named.flatten(params), named.flatten(params)
    for path in model.linear:
        made = quantised.narrow(jnp.asarray(codes[f"{path}/weight"]), kind)
        wide[f"{path}/weight"] = made.wide()
        codes |= {f"{path}/weight": made.codes, f"{path}/{NARROW}": made.scale}
    return named.nested(codes), named.nested(wide)


@pytest.mark.parametrize("name", [FIRST, *(pytest.param(x, marks=pytest.mark.check) for x in ("gpt_neox", "gemma2"))])
def test_a_model_computes_with_the_weights_that_its_codes_stand_for(name):
    """Values, and the gradients of adapters beside the codes."""
    model = models.build(CONFIGS[name])
    params = jax.jit(model.init)(jax.random.key(1))
    plan = trained.plan("lora", model, jax.eval_shape(lambda: params), lora=Lora(2, 4.0))
    random = np.random.default_rng(2)
    pairs = jax.tree.map(lambda x: random.normal(0, 0.3, x.shape).astype(np.float32), trained.like(plan))
    rows = plain(random.integers(0, CONFIGS[name]["vocab_size"], (2, 9)))

    @jax.jit
    def both(pairs, base):
        frozen = named.nested(named.flatten(base) | trained.scales(plan))
        return jax.value_and_grad(lambda x: cross_entropy(model, trained.join(plan, frozen, x), rows)[0])(pairs)

    for kind in ["nf4"] if name == FIRST else ["int8"]:
        codes, wide = narrowed(model, params, kind)
        (value, gradient), (expected, of_wide) = both(pairs, codes), both(pairs, wide)
        assert value == pytest.approx(float(expected), rel=1e-6)
        size = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(of_wide))
        for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(of_wide), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return programs.make(tmp_path_factory.mktemp("quantised"))


LORA = {"train.what": "lora", "lora.rank": 4, "lora.alpha": 8.0}


def configuration(folder, output, **changes):
    values = tiny.changes(folder, output) | {"model.weights": "load", "compiled": str(folder / "compiled")} | changes
    return settings.resolve(base.get_config(), values, choices=train.CHOICES)


def test_weights_are_read_into_codes_one_at_a_time_and_written_wide(folder, tmp_path):
    config = configuration(folder, "read", **LORA | {"model.frozen_dtype": "nf4"})
    made = bench.make(config)
    held = named.flatten(bench.base_params(config, made))
    like = named.flatten(bench.base_like(config, made))
    assert {k: (x.shape, x.dtype, x.sharding) for k, x in held.items()} == {
        k: (x.shape, x.dtype, x.sharding) for k, x in like.items()
    }
    tensors = named.flatten(hf.load(folder / "model", made.model))
    for path, tensor in tensors.items():
        linear = path.removesuffix("/weight") in made.model.linear
        assert held[path].dtype == (jnp.uint4 if linear else jnp.bfloat16), path
        if linear:
            beside = held[f"{path.removesuffix('weight')}{NARROW}"]
            expected = quantised.narrow(jnp.asarray(tensor), "nf4")
            np.testing.assert_array_equal(held[path], expected.codes)
            np.testing.assert_array_equal(beside, expected.scale)
    whole = quantised.lazily_widened({path: x for path, x in held.items() if "lora" not in path})
    hf.save(tmp_path / "wide", named.nested(whole), made.model, hf.read_config(folder / "model"))
    written = named.flatten(hf.load(tmp_path / "wide", made.model))
    for path, x in whole.items():
        wide = x.wide() if isinstance(x, Narrow) else x.astype(jnp.float32)
        np.testing.assert_array_equal(written[path], wide, err_msg=path)


@pytest.mark.check
def test_a_run_beside_codes_is_the_run_beside_what_they_stand_for(folder, capsys):
    """The same losses as a run of the widened model's folder, on one device and on eight; merged at the end."""
    config = configuration(folder, "codes", **LORA | {"model.frozen_dtype": "nf4", "export_merged": True})
    made = bench.make(config)
    held = {p: x for p, x in named.flatten(bench.base_params(config, made)).items() if "lora" not in p}
    wide = folder / "wide"
    whole = named.nested(quantised.lazily_widened(held))
    hf.save(wide, whole, made.model, hf.read_config(folder / "model"), beside=made.beside)
    train.train(config)
    assert "every margin of the first batch is exactly 0" in capsys.readouterr().out
    plain_run = LORA | {"model.path": str(wide), "export_merged": True}
    train.train(configuration(folder, "plain", **plain_run))
    mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "model.frozen_dtype": "nf4", "export_merged": True}
    train.train(configuration(folder, "mesh", **LORA | mesh))
    runs = [folder / name for name in ("codes", "plain", "mesh")]
    ours, *others = ([row["loss"] for row in metrics.read_jsonl(run / "metrics.jsonl", "train")] for run in runs)
    tensors, *exported = (load_file(run / "hf" / hf.WEIGHTS) for run in runs)
    for losses, other in zip(others, exported, strict=True):
        np.testing.assert_allclose(ours, losses, rtol=1e-5)
        for name, tensor in tensors.items():
            np.testing.assert_allclose(tensor, other[name], atol=1e-4, err_msg=name)


@pytest.mark.check
def test_no_wide_copy_of_the_weights_outlives_its_layer():
    """The backward pass of a deep stack needs less than the wide weights beside what it needs at least."""
    config = CONFIGS["llama"] | {"num_hidden_layers": 16, "hidden_size": 128, "intermediate_size": 512}
    model = models.build(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    plan = trained.plan("lora", model, shapes, lora=Lora(2, 4.0))
    rows = plain(np.zeros((1, 4), np.int32))
    like = jax.eval_shape(lambda params: narrowed(model, params, "int8")[0], shapes)

    def loss(pairs, base):
        frozen = named.nested(named.flatten(base) | trained.scales(plan))
        return cross_entropy(model, trained.join(plan, frozen, pairs), rows)[0]

    compiled = jax.jit(jax.grad(loss)).lower(trained.like(plan), like).compile()
    wide = sum(4 * x.size for path, x in named.flatten(shapes).items() if path.removesuffix("/weight") in model.linear)
    assert compiled.memory_analysis().temp_size_in_bytes < wide / 4


def test_what_cannot_be_is_refused(folder, monkeypatch):
    with pytest.raises(ValueError, match="config.model.frozen_dtype='int4', but config.train.what=all freezes no"):
        train.train(configuration(folder, "all", **{"model.frozen_dtype": "int4"}))
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"frozen_dtype='int8' takes qwix, .*: pip install 'slpojax\[quantised\]'"):
        quantised.require_library("int8")


@pytest.mark.check
def test_what_it_costs_a_real_model_in_log_probs(shared_data):
    """Stories260K on a text of its own: KL(exact || quantised), nats a token."""
    folder = shared_data / "llama-stories260k"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: the shared data holds no llama-stories260k")
    model, reference = models.build(hf.read_config(folder)), json.loads((folder / "reference.json").read_text())
    params, rows = hf.load(folder, model, grid.one_device()), plain([reference["greedy"]["ids"]])
    logps = jax.jit(lambda params: jax.nn.log_softmax(logits_of(model, params, rows)))
    exact = np.asarray(logps(params), np.float64)
    cost = {}
    for kind in quantised.KINDS:
        other = np.asarray(logps(narrowed(model, params, kind)[0]), np.float64)
        cost[kind] = (np.exp(exact) * (exact - other)).sum(-1).mean()
    print(cost)
    assert 0 < cost["int8"] < 1e-3
    assert 0.01 < cost["nf4"] < 0.3 and 0.01 < cost["int4"] < 0.3

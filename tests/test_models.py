"""Models against numbers of transformers, packed rows against separate sequences, cached steps against full passes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import make_models as witness
from jax import lax
from model_tools import cross_entropy, logits_of, named, plain
from safetensors.numpy import save_file

from slpojax import grid, hf, models
from slpojax.base import Rows
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
    "gpt_neox_sequential": _SMALL | {"model_type": "gpt_neox", "rotary_pct": 1.0, "use_parallel_residual": False},
}


# What is asked of a model here hardly knows its family: all but the first are for `make check`.
FIRST, *OTHERS = CONFIGS


@pytest.fixture(scope="module", params=[FIRST, *(pytest.param(name, marks=pytest.mark.check) for name in OTHERS)])
def small(request):
    """A model and its parameters."""
    model = models.build(CONFIGS[request.param])
    return model, jax.jit(model.init)(jax.random.key(1))


def _pull(model, rows):
    """Parameters -> ((loss, logits), gradient), compiled."""
    return jax.jit(jax.value_and_grad(lambda p: cross_entropy(model, p, rows), has_aux=True))


@pytest.mark.parametrize("case", witness.COMMITTED)
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


def _near(ours, theirs) -> None:
    """Gradients equal to 1e-5 of each tensor's largest entry (or absolutely, where that is below one)."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()), rtol=0)


def _example(key: int, prompt: int, responses: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    random = np.random.default_rng(key)
    return random.integers(0, 61, prompt), [random.integers(0, 61, n) for n in responses]


def _packed(examples, length: int) -> tuple[Rows, np.ndarray, np.ndarray]:
    """One row, and the source and the target of each response token."""
    row, source, target, place = np.zeros((4, length), np.int32), [], [], 0
    row[0] = 7  # what a padding cell says must not matter
    for number, (prompt, responses) in enumerate(examples, 1):
        last = place + len(prompt) - 1
        for branch, part in enumerate([prompt, *responses]):
            n, start = len(part), len(prompt) if branch else 0
            row[:, place : place + n] = [part, start + np.arange(n), np.full(n, number), np.full(n, branch)]
            if branch:
                source += [last, *range(place, place + n - 1)]
                target += part.tolist()
            place += n
    return Rows(*(x[None] for x in row)), np.array(source), np.array(target)


def _side_by_side(texts) -> Rows:
    """Sequences in rows of their own; what fills the shorter ones up stands later, where nothing before it looks."""
    ids = np.zeros((len(texts), max(map(len, texts))), np.int32)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    return plain(ids)


def _packed_and_separate(model):
    """Two functions of the parameters: the log-probs of every response token from one packed row, and one by one."""
    examples = [_example(0, 5, [3, 6, 1]), _example(1, 2, [4, 4]), _example(2, 7, [5])]
    rows, source, target = _packed(examples, 48)
    pairs = [(prompt, response) for prompt, responses in examples for response in responses]
    alone = _side_by_side([np.concatenate(pair) for pair in pairs])
    places = [(i, len(x) + t - 1) for i, (x, y) in enumerate(pairs) for t in range(len(y))]
    row, column = np.array(places).T

    def packed(params):
        return jax.nn.log_softmax(logits_of(model, params, rows)[0])[source, target]

    def separate(params):
        return jax.nn.log_softmax(logits_of(model, params, alone))[row, column, target]

    return packed, separate


def test_packed_equals_separate(small):
    model, params = small
    weight = np.random.default_rng(3).normal(size=23) / 23

    def pulled(logps):
        return jax.jit(lambda p: (logps(p), jax.grad(lambda p: logps(p) @ weight)(p)))(params)

    (ours, ours_gradient), (theirs, theirs_gradient) = map(pulled, _packed_and_separate(model))
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    _near(ours_gradient, theirs_gradient)


@pytest.mark.check
def test_padding_has_no_influence(small):
    model, params = small
    rows, source, _ = _packed([_example(0, 4, [3, 2])], 14)
    padding = rows.example == 0
    other = rows._replace(token=np.where(padding, 5, rows.token), position=rows.position + padding)
    with_an_empty_row = jax.tree.map(lambda x: np.concatenate([x, 0 * x]), rows)

    @jax.jit
    def pulled(params, rows):
        (_, hidden), gradient = jax.value_and_grad(
            lambda p: ((h := model.apply(p, rows, None)[0])[0, source].sum(), h), has_aux=True
        )(params)
        return hidden, gradient

    (expected, gradient), (same, same_gradient) = pulled(params, rows), pulled(params, other)
    np.testing.assert_array_equal(same[0, source], expected[0, source])
    jax.tree.map(np.testing.assert_array_equal, same_gradient, gradient)
    hidden, near_gradient = pulled(params, with_an_empty_row)
    assert np.isfinite(hidden).all()
    np.testing.assert_allclose(hidden[0, source], expected[0, source], atol=1e-5)
    _near(near_gradient, gradient)


@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=pytest.mark.check)])
def test_cached_steps_equal_a_full_pass(small, side):
    model, params = small
    prompts, new = [3, 6, 1], 5
    random = np.random.default_rng(5)
    texts = [random.integers(0, 61, n + new) for n in prompts]
    width = max(prompts)
    rows = np.zeros((4, len(prompts), width), np.int32)
    for r, (text, n) in enumerate(zip(texts, prompts, strict=True)):
        cells = slice(width - n, width) if side == "left" else slice(0, n)
        rows[:3, r, cells] = [text[:n], np.arange(n), np.ones(n)]
    tokens = jnp.stack([jnp.asarray(t[n:]) for t, n in zip(texts, prompts, strict=True)])
    one = jnp.ones((len(prompts), 1), jnp.int32)

    @jax.jit
    def decode(params):
        first, cache = model.apply(params, Rows(*rows), model.empty_cache(len(prompts), width + new))

        def step(cache, i):
            position = (jnp.asarray(prompts) + i)[:, None]
            row = Rows(lax.dynamic_slice_in_dim(tokens, i, 1, axis=1), position, one, 0 * one)
            hidden, cache = model.apply(params, row, cache)
            return cache, hidden[:, 0]

        return first, lax.scan(step, cache, jnp.arange(new))[1]

    first, later = decode(params)
    full = jax.jit(lambda p: model.apply(p, _side_by_side(texts), None)[0])(params)
    for r, n in enumerate(prompts):
        cells = slice(width - n, width) if side == "left" else slice(0, n)
        np.testing.assert_allclose(first[r, cells], full[r, :n], atol=2e-5)
        np.testing.assert_allclose(later[:, r], full[r, n : n + new], atol=2e-5)


def test_a_prompt_too_long_for_the_cache_is_an_error(small):
    model, params = small
    with pytest.raises(ValueError, match="9 tokens for a cache of 8 cells"):
        model.apply(params, plain(np.zeros((1, 9))), model.empty_cache(1, 8))


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


def test_init_is_that_of_transformers(small):
    _, params = small
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(key.key for key in path)
        assert leaf.dtype == jnp.float32
        if "norm" in name and name.endswith("weight"):
            assert (leaf == 1).all(), name
        elif name.endswith("bias"):
            assert (leaf == 0).all(), name
        else:
            assert leaf.std() == pytest.approx(0.3, rel=0.05) and abs(leaf.mean()) < 0.02, name
    assert not np.array_equal(*params["layers"]["attention"]["out"]["weight"])  # layers do not share their key


@pytest.mark.parametrize("case", [*witness.COMMITTED, "llama_mlp_bias", "mistral_no_window"])
def test_tables_cover_every_parameter(case):
    model = models.build(witness.CASES[case])
    shapes = flatten(jax.eval_shape(model.init, jax.random.key(0)))
    rules = dict(model.sharding)
    assert {f"^{name}$" for name in shapes} == set(rules)
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
            r"model_type='lama' is not known \(near: llama\); expected one of gpt_neox, llama, mistral, qwen2, or",
        ),
        ("llama", {"hidden_act": "xielu"}, "hidden_act='xielu'.*silu"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type='yarn'.*linear, llama3"),
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
        ("mistral", {"sliding_window": 4}, "sliding_window=4 is shorter than the longest sequence, 64 tokens"),
        ("mistral", {"max_position_embeddings": 80}, "sliding_window=64"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, "sliding_window=4"),
    ],
)
def test_an_option_that_is_not_supported_is_named(base, change, message):
    bases = CONFIGS | {"mistral": witness.CASES["mistral_long_window"], "qwen2": witness.CASES["qwen2"]}
    with pytest.raises(ValueError, match=message):
        models.build(bases[base] | change)


def test_what_a_shorter_run_allows():
    models.build(witness.CASES["mistral_long_window"] | {"sliding_window": 16}, max_length=16)
    with pytest.raises(ValueError, match="model.dtype='float64'.*float32, bfloat16"):
        models.build(CONFIGS["llama"], dtype="float64")
    with pytest.raises(ValueError, match="model.remat='full'.*none, dots, layer, offload"):
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
    with pytest.raises(ValueError, match="model_type='other' is not known.*or model.family=package.module"):
        models.build(config)
    with pytest.raises(ValueError, match="does not know model_type='llama'.*it knows other"):
        models.build(CONFIGS["llama"], family="other_family")
    with pytest.raises(ValueError, match="has no ARCHITECTURES, Block, NORM, TENSORS"):
        models.build(config, family="no_family")


def test_an_old_jax_does_not_offload_on_several_devices(monkeypatch):
    mesh = grid.make_mesh(1, 2, 1, devices=jax.devices()[:2])
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 1))
    with pytest.raises(ValueError, match="offload' on 2 devices takes JAX 0.11.*Set model.remat='layer'"):
        models.build(CONFIGS["llama"], remat="offload", grid=grid.of_mesh(mesh))

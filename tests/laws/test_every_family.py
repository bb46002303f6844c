"""Laws that hold for every model family of the package, found by walking it: a new one inherits them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from model_tools import logits_of, plain

from slpojax import hf, models
from slpojax.base import Rows

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "initializer_range": 0.3,
    "max_position_embeddings": 256,
}
# Of a family whose config.json needs more, or means something else where that is left out, it is said here.
_GROUPED = {"num_key_value_heads": 2}
_SHORT = _GROUPED | {"sliding_window": 3}  # than most examples
_CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
MORE = {
    "gpt_neox": {"rotary_pct": 0.5},
    "mistral": _SHORT,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 12},
    "gemma2": _SHORT | _CAPS | {"head_dim": 12},
    "gemma3_text": _SHORT | {"head_dim": 12, "sliding_window_pattern": 2},
    "olmo2": _GROUPED,
    "olmo3": _SHORT | {"layer_types": ["full_attention", "sliding_attention"]},
    "smollm3": _GROUPED | {"no_rope_layer_interval": 2, "pad_token_id": None},
}
CONFIGS = {name: SMALL | {"model_type": name} | MORE.get(name, {}) for name in models.families()} | {
    "llama, grouped and tied": SMALL | {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt_neox, sequential": SMALL | {"model_type": "gpt_neox", "rotary_pct": 1.0, "use_parallel_residual": False},
}
# What is asked here hardly depends on the family: but for one all are in `make check`.
FIRST = "llama, grouped and tied"


PARAMS = [pytest.param(name, marks=() if name == FIRST else pytest.mark.check) for name in CONFIGS]


@pytest.fixture(scope="module", params=PARAMS)
def small(request):
    """A model and its parameters."""
    model = models.build(CONFIGS[request.param])
    return model, jax.jit(model.init)(jax.random.key(1))


@pytest.fixture
def offset(request):
    """What a family adds to the weights of its norms."""
    config = CONFIGS[request.node.callspec.params["small"]]
    return getattr(models.find_family(config["model_type"]), "OFFSET", 0)


@pytest.mark.parametrize("name", PARAMS)
def test_what_is_written_is_read_back_bit_for_bit(name, tmp_path):
    model = models.build(CONFIGS[name])
    params = jax.device_get(jax.jit(model.init)(jax.random.key(1)))
    hf.save(tmp_path, params, model, CONFIGS[name])
    assert hf.read_config(tmp_path)["architectures"] == [
        models.find_family(CONFIGS[name]["model_type"]).ARCHITECTURES[CONFIGS[name]["model_type"]]
    ]
    jax.tree.map(np.testing.assert_array_equal, hf.load(tmp_path, model), params)


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


def test_init_is_that_of_transformers(small, offset):
    _, params = small
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(key.key for key in path)
        assert leaf.dtype == jnp.float32
        if "norm" in name and name.endswith("weight"):
            assert (leaf + offset == 1).all(), name
        elif name.endswith("bias"):
            assert (leaf == 0).all(), name
        else:
            error = 4 / leaf.size**0.5  # of a mean, and more than that of a deviation
            assert leaf.std() == pytest.approx(0.3, rel=error) and abs(leaf.mean()) < 0.3 * error, name
    assert not np.array_equal(*params["layers"]["attention"]["out"]["weight"])  # layers do not share their key

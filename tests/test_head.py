"""The log-prob head against float64, and the promise that no array holds both positions and vocabulary."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from slpojax import grid
from slpojax.base import ABSENT, Scored, Shapes
from slpojax.head import POSITIONS_AT_ONCE, positions_at_once, token_log_odds, token_scores
from slpojax.scores import place

R, L, S, D, V = 3, 40, 21, 16, 97


def _case(scale: float = 1.0):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(R, L, D)).astype(np.float32) * scale
    unembed = rng.normal(size=(D, V)).astype(np.float32)
    source = rng.integers(0, L, (R, S)).astype(np.int32)
    target = rng.integers(0, V, (R, S)).astype(np.int32)
    return hidden, unembed, Scored(source, target, np.arange(R * S, dtype=np.int32).reshape(R, S))


def _truth(hidden, unembed, scored):
    """log p and log(1 - p) in float64, by summing the probabilities of the token and of all the others."""
    states = np.take_along_axis(hidden.astype(np.float64), scored.source[..., None], 1)
    logits = states @ unembed.astype(np.float64)
    top = logits.max(-1, keepdims=True)
    weights = np.exp(logits - top)
    own = np.take_along_axis(weights, scored.target[..., None], -1)[..., 0]
    total = weights.sum(-1)
    others = np.where(np.arange(V) == scored.target[..., None], 0.0, weights).sum(-1)
    return np.log(own) - np.log(total), np.log(others) - np.log(total)


def _logps(hidden, unembed, scored, chunk):
    odds = token_log_odds(hidden, unembed, scored, chunk=chunk)
    return -jax.nn.softplus(-odds), -jax.nn.softplus(odds)


@pytest.mark.parametrize("chunk", [1, 8, 21, 64])
def test_float32_equals_float64_truth(chunk):
    hidden, unembed, scored = _case()
    got = jax.jit(_logps, static_argnums=3)(hidden, unembed, scored, chunk)
    for ours, truth in zip(got, _truth(hidden, unembed, scored), strict=True):
        np.testing.assert_allclose(ours, truth, atol=1e-5, rtol=1e-6)


def test_near_certain_tokens_keep_their_complement():
    hidden, unembed, scored = _case(scale=4.0)
    logits = np.einsum("rsd,dv->rsv", np.take_along_axis(hidden, scored.source[..., None], 1), unembed)
    scored = scored._replace(target=logits.argmax(-1).astype(np.int32))
    token, other = _logps(hidden, unembed, scored, 8)
    true_token, true_other = _truth(hidden, unembed, scored)
    assert true_token.max() > -1e-8  # float32's log_softmax gives 0 here, and so no complement at all
    np.testing.assert_allclose(token, true_token, rtol=1e-4, atol=0)
    np.testing.assert_allclose(other, true_other, atol=1e-4)


def _rounded(x) -> np.ndarray:
    """Through bfloat16 and back."""
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)


def test_bfloat16_rounds_the_inputs_and_nothing_else():
    hidden, unembed, scored = _case()
    token, _ = _logps(jnp.asarray(hidden, jnp.bfloat16), unembed, scored, 8)
    exact = _truth(_rounded(hidden), _rounded(unembed), scored)
    np.testing.assert_allclose(token, exact[0], atol=1e-5)  # the logits are never rounded


@pytest.mark.parametrize("width", [16, 256])
def test_bfloat16_weights_cost_two_hundredths_of_a_nat_a_token(width):
    """With logits as spread as a model's: of standard deviation 2, whatever the width."""
    rng = np.random.default_rng(5)
    hidden = rng.normal(size=(R, L, width)).astype(np.float32)  # as the final norm leaves them
    unembed = (2 * rng.normal(size=(width, V)) / np.sqrt(width)).astype(np.float32)
    scored = _case()[2]
    truth = _truth(hidden, unembed, scored)[0]
    weights, _ = _logps(hidden, _rounded(unembed), scored, 8)
    np.testing.assert_allclose(weights, truth, atol=2e-2)
    # States of bfloat16 round as much again: still no more for logits like these, whose errors grow with their spread.
    both, _ = _logps(jnp.asarray(hidden, jnp.bfloat16), unembed, scored, 8)
    np.testing.assert_allclose(both, truth, atol=2e-2)
    assert np.abs(both - truth).max() > 1e-3


@pytest.mark.parametrize("chunk", [5, 21])
def test_gradient_equals_float64_formula(chunk):
    hidden, unembed, scored = _case()
    weight = np.random.default_rng(1).normal(size=(R, S)).astype(np.float32)

    def loss(hidden, unembed):
        return jnp.sum(weight * _logps(hidden, unembed, scored, chunk)[0])

    got = jax.jit(jax.grad(loss, (0, 1)))(hidden, unembed)
    states = np.take_along_axis(hidden.astype(np.float64), scored.source[..., None], 1)
    logits = states @ unembed.astype(np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dlogits = weight[..., None] * ((np.arange(V) == scored.target[..., None]) - p)
    dhidden = np.zeros(hidden.shape)
    for r in range(R):
        np.add.at(dhidden[r], scored.source[r], dlogits[r] @ unembed.T)
    np.testing.assert_allclose(got[0], dhidden, atol=2e-5)
    np.testing.assert_allclose(got[1], np.einsum("rsd,rsv->dv", states, dlogits), atol=2e-5)


# ---- the written derivative against the one that JAX finds of the definitions, in float64 ----------------------------

WANTED = ("collision", "entropy", "kl")
NUMBERS = ("log_odds", *WANTED)


def _definitions(hidden, unembed, reference, scored, caps=(None, None)):
    """The numbers of `head` as they are defined, from all logits at once."""

    def logp(hidden, unembed, cap):
        logits = jnp.take_along_axis(hidden, scored.source[..., None], 1) @ unembed
        return jax.nn.log_softmax(cap * jnp.tanh(logits / cap) if cap else logits)

    p, q = logp(hidden, unembed, caps[0]), logp(*reference, caps[1])
    own = jnp.take_along_axis(p, jnp.asarray(scored.target)[..., None], -1)[..., 0]
    others = jnp.where(scored.target[..., None] == np.arange(p.shape[-1]), -jnp.inf, p)
    return {
        "log_odds": own - jax.nn.logsumexp(others, axis=-1),
        "collision": jnp.log(jnp.sum(jnp.exp(p) ** 2, axis=-1)),
        "entropy": -jnp.sum(jnp.exp(p) * p, axis=-1),
        "kl": jnp.sum(jnp.exp(q) * (q - p), axis=-1),
    }


def _reference(hidden, unembed):
    noise = np.random.default_rng(7).normal(size=hidden.shape).astype(np.float32)
    return hidden + np.float32(0.3) * noise, unembed[:, ::-1].copy()


def _pulled(numbers, hidden, unembed, weights):
    """The numbers, and the gradient of each one's weighted sum by the hidden states and by the unembedding."""

    def pulled(hidden, unembed, weights):
        out, pull = jax.vjp(numbers, hidden, unembed)
        one = jnp.zeros((len(NUMBERS), *weights.shape), weights.dtype)
        return out, jax.vmap(pull)({name: one.at[k].set(weights) for k, name in enumerate(NUMBERS)})

    out, grads = jax.jit(pulled)(hidden, unembed, weights)
    return jax.tree.map(np.asarray, (out, {name: [g[k] for g in grads] for k, name in enumerate(NUMBERS)}))


# The parts of the vocabulary: one, or several with some words left; of one stretch (97 is prime), or of one of each of
# the 16 pieces of 112 words.
@pytest.mark.parametrize(
    "dtype, words, chunk, caps",
    [
        (jnp.float32, 97, 21, (None, None)),
        *(
            pytest.param(*x, marks=pytest.mark.check)
            for x in (
                (jnp.float32, 112, 8, (None, None)),
                (jnp.bfloat16, 97, 4, (None, None)),
                (jnp.float32, 97, 21, (3.0, 2.0)),
                (jnp.float32, 112, 8, (1.0, None)),
                (jnp.bfloat16, 112, 8, (2.0, 30.0)),
            )
        ),
    ],
)
def test_every_number_and_its_gradients_equal_the_definitions(dtype, words, chunk, caps):
    hidden, _, scored = _case(scale=0.5)
    unembed = np.random.default_rng(3).normal(size=(D, words)).astype(np.float32)
    scored = scored._replace(target=scored.target % words)
    reference = _reference(hidden, unembed)
    weights = np.random.default_rng(1).normal(size=(R, S)).astype(np.float32)
    states = [jnp.asarray(x, dtype) for x in (hidden, reference[0])]

    def ours(hidden, unembed):
        other = (states[1], reference[1])
        return token_scores(hidden, unembed, scored, chunk=chunk, requested=WANTED, reference=other, caps=caps)

    got, grads = _pulled(ours, states[0], unembed, weights)
    with jax.enable_x64(True):
        # The rounded operands, exactly.
        operands = [np.float64(jnp.asarray(x, dtype)) for x in (hidden, unembed, *reference)]

        def exact(hidden, unembed):
            return _definitions(hidden, unembed, operands[2:], scored, caps)

        want, slopes = _pulled(exact, *operands[:2], np.float64(weights))
    # In bfloat16 the gradient by the logits is an operand too: each of its terms is rounded once, to 2^-9.
    close = 1e-5 if dtype is jnp.float32 else 1e-2
    for name in NUMBERS:
        np.testing.assert_allclose(got[name], want[name], atol=2e-5, rtol=1e-5, err_msg=name)
        for found, slope, where in zip(grads[name], slopes[name], ("hidden", "unembed"), strict=True):
            error = np.linalg.norm(np.float64(found) - slope) / np.linalg.norm(slope)
            assert error < close, f"{name} by {where}: {error}"
    assert grads["kl"][0].dtype == dtype and grads["kl"][1].dtype == np.float32


def test_certain_and_impossible_tokens_have_exact_gradients():
    """d = 200 and d = -200: the gradient of log p is 1 - p, here e^-200 and 1, of what the states say."""
    unembed = np.zeros((1, 3), np.float32)
    unembed[0] = [1.0, -1.0, -1.0]
    hidden = np.array([[[100.0], [-100.0]]], np.float32)
    scored = Scored(np.array([[0, 1]], np.int32), np.zeros((1, 2), np.int32), np.zeros((1, 2), np.int32))

    def value(hidden, k):
        out = token_scores(hidden, unembed, scored, chunk=2, requested=("collision", "entropy"))
        return sum(x[0, k] for x in out.values()), out

    for k, sign in enumerate((1, -1)):
        grad, out = jax.grad(value, has_aux=True)(hidden, k)
        assert np.all(np.isfinite(grad))
        # z_0 - z_1 = 2 h and two others of the same logit: d = 2 h - log 2, and the rest is flat here.
        np.testing.assert_allclose(grad[0, k, 0], 2.0, rtol=1e-6)
        np.testing.assert_allclose(out["log_odds"][0, k], sign * 200.0 - np.log(2), rtol=1e-6)
        np.testing.assert_allclose(out["entropy"][0, k], 0.0 if k == 0 else np.log(2), atol=1e-6)
        np.testing.assert_allclose(out["collision"][0, k], 0.0 if k == 0 else -np.log(2), atol=1e-6)


def test_no_divergence_where_policy_and_reference_agree():
    hidden, unembed, scored = _case()
    out = jax.jit(
        lambda: token_scores(hidden, unembed, scored, chunk=8, requested=("kl",), reference=(hidden, unembed))
    )()
    assert not np.any(out["kl"])


def test_activity_is_the_mean_of_the_references_logits():
    hidden, unembed, scored = _case()
    reference = _reference(hidden, unembed)
    got = jax.jit(
        lambda: token_scores(hidden, unembed, scored, chunk=8, requested=("activity",), reference=reference)
    )()
    states = np.take_along_axis(np.float64(reference[0]), scored.source[..., None], 1)
    np.testing.assert_allclose(got["activity"], (states @ reference[1]).mean(-1), atol=1e-5)


# ---- memory, and what devices tell each other ------------------------------------------------------------------------


def _lowered(rows, count, width, words, numbers):
    ids = jax.ShapeDtypeStruct((rows, count), jnp.int32)
    hidden = jax.ShapeDtypeStruct((rows, count, width), jnp.float32)
    table = jax.ShapeDtypeStruct((words, width), jnp.float32)

    def loss(hidden, table, scored):
        return numbers(hidden, table.T, scored).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(hidden, table, Scored(ids, ids, ids)).compile()


def _naive(hidden, unembed, scored):
    logp = jax.nn.log_softmax(hidden @ unembed)
    return jnp.take_along_axis(logp, scored.target[..., None], axis=-1)


@pytest.mark.parametrize("words", [50304, 128256])
def test_memory_is_at_most_a_twentieth_of_that_of_all_logits_at_once(words):
    rows, count, width = 4, 2048, 256
    ours = _lowered(
        rows, count, width, words, lambda *x: token_log_odds(*x, chunk=POSITIONS_AT_ONCE // rows)
    ).memory_analysis()
    naive = _lowered(rows, count, width, words, _naive).memory_analysis()
    assert ours.temp_size_in_bytes < 0.05 * naive.temp_size_in_bytes


def test_no_array_is_larger_than_the_logits_that_chunk_allows():
    rows, count, width, words, chunk = 2, 1000, 8, 5008, 50
    compiled = _lowered(rows, count, width, words, lambda *x: token_log_odds(*x, chunk=chunk))
    shapes = [tuple(map(int, s.split(","))) for s in re.findall(r"\[([\d,]+)\]", compiled.as_text())]
    assert rows * chunk * words * 0.95 < max(map(np.prod, shapes)) < rows * chunk * words * 1.05


def test_devices_share_each_part_of_the_vocabulary_once():
    """Nothing larger than a part of the table goes between devices, and of the [rows, words] logits nothing at all."""
    devices = grid.make(2, 2, 2)
    rows, count, width, words, chunk = 8, 64, 96, 1536, 16
    split = NamedSharding(devices.mesh, PartitionSpec(("data", "fsdp")))
    table_split, whole = NamedSharding(devices.mesh, PartitionSpec("tensor", "fsdp")), devices.everywhere

    def loss(hidden, table, scored):
        odds = token_log_odds(hidden, table.T, scored, chunk=chunk)
        return jnp.sum(jax.lax.with_sharding_constraint(odds, whole) ** 2)

    step = jax.jit(
        jax.value_and_grad(loss, (0, 1)),
        in_shardings=(split, table_split, Scored(split, split, split)),
        out_shardings=(whole, (split, table_split)),
    )
    ids = jax.ShapeDtypeStruct((rows, count), jnp.int32)
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((rows, count, width), (words, width))]
    text = step.lower(*arrays, Scored(ids, ids, ids)).compile().as_text()
    told = re.findall(r"= \(?f32\[([\d,]+)\][^=]* (?:all-gather|all-reduce|all-to-all|reduce-scatter)\(", text)
    sizes = {tuple(map(int, shape.split(","))) for shape in told}
    part = words * chunk // count // 2  # of a device: the tensor axis has two
    assert (part, width) in sizes, sizes
    states = rows * count * width // 4 * 2
    assert max(map(np.prod, sizes)) <= max(part * width, states), sizes
    assert not [shape for shape in sizes if count in shape and part in shape], sizes


# ---- where the numbers go --------------------------------------------------------------------------------------------


def test_place_puts_every_token_at_its_slot_and_drops_the_unused():
    odds = np.array([[0.5, -1.0, 9.0], [2.0, 9.0, 9.0]], np.float32)
    scored = Scored(*(np.zeros((2, 3), np.int32),) * 2, slot=np.array([[0, 1, 8], [6, 8, 8]], np.int32))
    length, shapes = np.array([[2, 0], [0, 1]], np.int32), Shapes(2, 2, 2, 2, 4, 3)
    got, rest = place({"log_odds": odds, "entropy": 2 * odds}, scored, length, shapes)
    np.testing.assert_array_equal(rest["entropy"], [[[1.0, -2.0], [0, 0]], [[0, 0], [4.0, 0]]])
    expected = np.log(1 / (1 + np.exp(-np.array([0.5, -1.0, 2.0]))))
    np.testing.assert_allclose(got.token, [[[expected[0], expected[1]], [0, 0]], [[0, 0], [expected[2], 0]]], rtol=1e-6)
    np.testing.assert_allclose(got.other[0, 0], np.log(1 / (1 + np.exp([0.5, -1.0]))), rtol=1e-6)
    assert got.other[0, 1, 0] == got.other[1, 1, 1] == np.float32(ABSENT)


@pytest.mark.parametrize("platform", ["gpu", "cuda", "tpu"])
@pytest.mark.parametrize(("vocabulary", "positions"), [(97, 1024), (50304, 1024), (128256, 512), (262144, 256)])
def test_an_accelerator_has_more_logits_at_once_up_to_a_bound_of_memory(platform, vocabulary, positions):
    assert positions_at_once(platform, vocabulary) == positions
    assert 4 * positions * vocabulary <= 2**28
    assert positions_at_once("cpu", vocabulary) == POSITIONS_AT_ONCE

"""Sampling against full forward passes, the softmax and the definitions of top-k and top-p."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slpojax import grid, models
from slpojax.base import Rows
from slpojax.sampling import filter_logits, generate, score

VOCABULARY, EOS = 13, 1
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.6,
}
NEOX = {
    "model_type": "gpt_neox",
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "initializer_range": 0.6,
    "rotary_pct": 0.5,
}
PROMPTS = [[3, 4, 5], [7], [2, 9, 11, 6, 8, 3], [12, 12], [5, 2, 10, 4]]


NEOX_TOO = pytest.param(NEOX, id="gpt_neox", marks=pytest.mark.check)


@pytest.fixture(scope="module", params=[pytest.param(LLAMA, id="llama"), NEOX_TOO])
def policy(request):
    return policy_of(request.param)


@pytest.fixture(scope="module")
def llama():
    return policy_of(LLAMA)


def policy_of(config):
    model = models.build(config)
    return model, jax.jit(model.init)(jax.random.key(3))


@functools.cache
def last_hidden(apply):
    return jax.jit(lambda params, rows, last: apply(params, rows, None)[0][0, last])


def next_log_softmax(model, params, tokens):
    """The distribution after `tokens`, by a forward pass over all of them; the softmax in float64."""
    row = np.zeros((1, 24), np.int32)
    row[0, : len(tokens)] = tokens
    inside = (np.arange(24)[None] < len(tokens)).astype(np.int32)
    rows = Rows(row, np.arange(24, dtype=np.int32)[None], inside, 0 * inside)
    hidden = np.asarray(last_hidden(model.apply)(params, rows, len(tokens) - 1), np.float64)
    logits = hidden @ np.asarray(model.unembed(params), np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def test_greedy_is_the_argmax_of_a_full_forward_pass(policy):
    sampled = generate(*policy, PROMPTS, key=jax.random.key(0), max_new_tokens=7, eos=(EOS,), temperature=0.0, batch=3)
    for prompt, response in zip(PROMPTS, sampled, strict=True):
        tokens = list(prompt)
        for token, logp in zip(response.token, response.logp, strict=True):
            expected = next_log_softmax(*policy, tokens)
            assert token == expected.argmax()
            assert logp == pytest.approx(expected[token], abs=1e-5)
            tokens.append(int(token))
        assert len(response.token) == 7 or response.finished


def test_logps_are_those_of_the_model_whatever_the_temperature(policy):
    sampled = generate(
        *policy, PROMPTS, key=jax.random.key(1), max_new_tokens=9, eos=(EOS,), temperature=1.7, top_k=6, top_p=0.9
    )
    again = score(*policy, PROMPTS, [r.token for r in sampled], max_new_tokens=9, batch=2)
    for response, logp in zip(sampled, again, strict=True):
        assert response.logp.dtype == np.float32
        np.testing.assert_allclose(response.logp, logp, atol=2e-5)


def test_a_response_does_not_depend_on_its_batch(policy):
    settings = dict(key=jax.random.key(2), max_new_tokens=8, eos=(EOS,))
    together = generate(*policy, PROMPTS, batch=len(PROMPTS), **settings)
    for i, prompt in enumerate(PROMPTS):
        (alone,) = generate(*policy, [prompt], batch=1, first=i, **settings)
        np.testing.assert_array_equal(alone.token, together[i].token)
        np.testing.assert_allclose(alone.logp, together[i].logp, atol=1e-5)
        assert alone.finished == together[i].finished
    same = generate(*policy, PROMPTS, batch=1, **settings)
    assert [r.token.tolist() for r in same] == [r.token.tolist() for r in together]
    other = generate(*policy, PROMPTS, batch=1, **(settings | {"key": jax.random.key(9)}))
    assert [r.token.tolist() for r in other] != [r.token.tolist() for r in together]


@pytest.mark.parametrize(
    "sizes", [(2, 2, 2), *(pytest.param(x, marks=pytest.mark.check) for x in ((1, 8, 1), (8, 1, 1)))]
)
def test_a_mesh_samples_what_one_device_does(llama, sizes):
    split = grid.make(*sizes)
    model = models.build(LLAMA, grid=split)
    where, _ = grid.tree(split, model.sharding, llama[1])
    params = jax.tree.map(jax.device_put, llama[1], where)
    settings = dict(key=jax.random.key(2), max_new_tokens=8, eos=(EOS,))
    one = generate(*llama, PROMPTS, batch=len(PROMPTS), **settings)
    several = generate(model, params, PROMPTS, batch=len(PROMPTS), grid=split, **settings)
    for ours, theirs in zip(several, one, strict=True):
        np.testing.assert_array_equal(ours.token, theirs.token)
        np.testing.assert_allclose(ours.logp, theirs.logp, atol=1e-5)
        assert ours.finished == theirs.finished
    tokens = [response.token for response in one]
    again = score(model, params, PROMPTS, tokens, max_new_tokens=8, batch=3, grid=split)
    for logp, response in zip(again, one, strict=True):
        np.testing.assert_allclose(logp, response.logp, atol=1e-5)


@pytest.mark.check
def test_only_the_last_token_is_an_eos_and_finished_says_so(llama):
    sampled = generate(*llama, PROMPTS * 20, key=jax.random.key(4), max_new_tokens=12, eos=(EOS, 2), batch=50)
    for response in sampled:
        ends = np.isin(response.token, (EOS, 2))
        assert not ends[:-1].any()
        assert ends[-1] == response.finished
        assert response.finished or len(response.token) == 12
    assert 0 < sum(response.finished for response in sampled) <= 100


@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=pytest.mark.check), 0.6])
def test_frequencies_match_the_softmax(llama, temperature):
    from scipy import stats

    count = 4000
    sampled = generate(
        *llama,
        [PROMPTS[0]] * count,
        key=jax.random.key(5),
        max_new_tokens=1,
        eos=(EOS,),
        temperature=temperature,
        batch=500,
    )
    logits = next_log_softmax(*llama, PROMPTS[0]) / temperature
    expected = count * np.exp(logits) / np.exp(logits).sum()
    seen = np.bincount([r.token[0] for r in sampled], minlength=VOCABULARY)
    common = expected >= 5
    pool = lambda x: np.append(x[common], x[~common].sum())  # noqa: E731
    chi_square = (((pool(seen) - pool(expected)) ** 2) / np.maximum(pool(expected), 1e-9))[pool(expected) > 0.5].sum()
    assert chi_square < stats.chi2.ppf(0.999, common.sum())


def test_top_k_keeps_the_k_most_probable():
    logits = jnp.array([[0.0, 3.0, 1.0, 2.0, -1.0], [5.0, 1.0, 1.0, 0.0, -2.0]])
    kept = jnp.isfinite(filter_logits(logits, top_k=2, top_p=1.0))
    np.testing.assert_array_equal(kept, [[0, 1, 0, 1, 0], [1, 1, 1, 0, 0]])  # a tie stays


@pytest.mark.parametrize(("top_p", "size"), [(0.05, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (0.99, 4)])
def test_top_p_keeps_the_smallest_set_of_that_probability(top_p, size):
    p = np.array([0.05, 0.5, 0.15, 0.3])
    kept = np.isfinite(filter_logits(jnp.log(jnp.array(p, jnp.float32)), top_k=0, top_p=top_p))
    assert set(np.flatnonzero(kept)) == set(np.argsort(-p)[:size])


@pytest.mark.check
def test_top_k_of_one_is_greedy_and_top_k_is_never_left(llama):
    settings = dict(max_new_tokens=5, eos=(EOS,), batch=100)
    greedy = generate(*llama, PROMPTS, key=jax.random.key(0), temperature=0.0, **settings)
    one = generate(*llama, PROMPTS, key=jax.random.key(0), top_k=1, **settings)
    assert [r.token.tolist() for r in one] == [r.token.tolist() for r in greedy]
    allowed = np.argsort(-next_log_softmax(*llama, PROMPTS[0]))[:3]
    several = generate(*llama, [PROMPTS[0]] * 100, key=jax.random.key(0), top_k=3, **settings)
    assert {int(r.token[0]) for r in several} == set(allowed.tolist())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"top_p": 0.0}, "top_p: got 0.0"),
        ({"top_k": -1}, "top_k: got -1"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
    ],
)
def test_wrong_arguments_are_named(llama, wrong, message):
    given = dict(prompts=PROMPTS, key=jax.random.key(0), max_new_tokens=2, eos=(EOS,)) | wrong
    with pytest.raises(ValueError, match=message):
        generate(*llama, given.pop("prompts"), **given)

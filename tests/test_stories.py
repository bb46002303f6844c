"""A real trained checkpoint (stories260K, 260,032 parameters) against numbers of a float64 forward pass."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from model_tools import logits_of, plain

from slpojax import hf, models
from slpojax.base import Rows
from slpojax.draws import Draw
from slpojax.sampling import generate


@pytest.fixture(scope="module")
def stories(shared_data):
    """The model, its parameters and its reference numbers."""
    folder = shared_data / "llama-stories260k"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: the shared data holds no llama-stories260k")
    model = models.build(hf.read_config(folder))
    return model, hf.load(folder, model), json.loads((folder / "reference.json").read_text())


def test_greedy_tokens_by_cached_decoding(stories):
    model, params, reference = stories
    expected = reference["greedy"]["ids"]
    [first] = reference["greedy"]["prompt_ids"]
    steps = reference["greedy"]["new_tokens"]

    @jax.jit
    def decode(params):
        def step(state, position):
            token, cache = state
            one = jnp.ones((1, 1), jnp.int32)
            hidden, cache = model.apply(params, Rows(token, position[None, None], one, 0 * one), cache)
            token = jnp.argmax(jnp.einsum("rld,dv->rlv", hidden, model.unembed(params)), -1).astype(jnp.int32)
            return (token, cache), token[0, 0]

        start = jnp.full((1, 1), first, jnp.int32), model.empty_cache(1, steps)
        return lax.scan(step, start, jnp.arange(steps))[1]

    ids = [first, *np.asarray(decode(params)).tolist()]
    assert len(expected) == 201
    assert ids == expected


@pytest.mark.check
def test_greedy_tokens_by_sampling(stories):
    model, params, reference = stories
    [first, *expected] = reference["greedy"]["ids"]
    options = dict(key=jax.random.key(0), max_new_tokens=len(expected), eos=(), draw=Draw(temperature=0.0))
    [[response]] = generate(model, params, [[first]], **options)
    assert response.token.tolist() == expected and not response.finished


def test_log_probs_of_texts(stories):
    model, params, reference = stories
    texts = reference["texts"]
    assert len(texts) == 7
    width = max(len(text["ids"]) for text in texts)
    ids = np.zeros((len(texts), width), np.int32)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text["ids"])] = text["ids"]
    logits = jax.jit(lambda p: logits_of(model, p, plain(ids)))(params)
    logps = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), jnp.asarray(ids)[:, 1:, None], -1)[..., 0]
    for row, logit, text in zip(np.asarray(logps), np.asarray(logits), texts, strict=True):
        n = len(text["ids"])
        np.testing.assert_allclose(row[: n - 1], text["logprob"], atol=1e-4, rtol=0)
        top = [[i, logit[n - 1, i]] for i in np.argsort(-logit[n - 1])[:5]]
        np.testing.assert_allclose(top, text["last_position_top5"], atol=1e-4, rtol=0)

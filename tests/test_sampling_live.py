"""Greedy sampling against `transformers.generate`, on random models of the families and on a trained one."""

import json

import jax
import numpy as np
import pytest
from goldens import make_models as witness

from slpojax import hf, models
from slpojax.draws import Draw
from slpojax.sampling import generate

pytestmark = [pytest.mark.check, pytest.mark.optimised]

NEW = 24
CASES = ["llama_grouped", "neox_default", "neox_sequential", "mistral_window"]
CASES += ["gemma2", "gemma3", "olmo3", "smollm3_window"]


def transformers_greedy(model, prompts, eos):
    """Of all prompts at once, padded on the left; up to the first EOS."""
    torch = pytest.importorskip("torch")
    width = max(map(len, prompts))
    token, seen = np.zeros((2, len(prompts), width), np.int64)
    for row, mask, prompt in zip(token, seen, prompts, strict=True):
        row[width - len(prompt) :], mask[width - len(prompt) :] = prompt, 1
    options = dict(max_new_tokens=NEW, do_sample=False, eos_token_id=eos, pad_token_id=0)
    with torch.no_grad():
        out = model.generate(torch.from_numpy(token), attention_mask=torch.from_numpy(seen), **options)
    ends = [np.flatnonzero(np.isin(row, eos)) for row in out[:, width:].numpy()]
    return [row[: end[0] + 1 if len(end) else NEW].tolist() for row, end in zip(out[:, width:], ends, strict=True)]


def assert_greedy_is_that_of_transformers(folder, theirs, prompts, eos):
    model = models.build(hf.read_config(folder))
    params = hf.load(folder, model)
    options = dict(key=jax.random.key(0), max_new_tokens=NEW, eos=eos, draw=Draw(temperature=0.0), slots=5)
    ours = [response.token.tolist() for (response,) in generate(model, params, prompts, **options)]
    assert ours == transformers_greedy(theirs, prompts, eos)


@pytest.mark.parametrize("case", CASES)
def test_random_models(case, tmp_path):
    theirs = witness.transformers_model(witness.CASES[case])
    theirs.save_pretrained(tmp_path)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 97, n) for n in (1, 5, 12, 3, 30, 8, 17, 2, 9, 9, 21, 4)]
    assert_greedy_is_that_of_transformers(tmp_path, theirs, prompts, [2, 5])


def test_a_trained_model(shared_data):
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    folder = shared_data / "llama-stories260k"
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    texts = [text["ids"] for text in json.loads((folder / "reference.json").read_text())["texts"]]
    prompts = [np.array(ids[: 4 + 3 * i]) for i, ids in enumerate(texts)]
    assert_greedy_is_that_of_transformers(folder, theirs, prompts, [1, 2])

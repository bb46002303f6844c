"""Every tiny config against transformers itself: logits, gradients, and the round trip through files."""

import sys

import jax
import numpy as np
import pytest
from goldens import make_models as witness
from model_tools import cross_entropy, named, plain

from slpojax import hf, models

pytestmark = pytest.mark.check

# float32 through two or three layers, forward and backward; relative to the largest entry of the tensor.
TOLERANCE = 1e-4


@pytest.mark.parametrize("case", witness.CASES)
def test_equals_transformers(case, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    config, ids = witness.CASES[case], witness.tokens(case)
    theirs = witness.transformers_model(config)
    theirs.save_pretrained(tmp_path / "theirs")
    longest = witness.LENGTH if "beyond" in case else None
    model = models.build(config, max_length=longest)
    params = hf.load(tmp_path / "theirs", model)

    pull = jax.jit(jax.value_and_grad(lambda p: cross_entropy(model, p, plain(ids)), has_aux=True))
    (_, logits), gradient = pull(params)
    gradients = named(gradient, model, config, tmp_path / "gradient")
    expected_logits, expected = witness.logits_and_gradients(theirs, ids)
    errors = {"logits": np.abs(logits - expected_logits).max() / np.abs(expected_logits).max()}
    assert gradients.keys() == expected.keys()
    # A key's bias has no gradient where nothing turns the keys: softmax does not see it. Nothing is left but rounding.
    least = 1e-4 * max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        errors[name] = np.abs(gradients[name] - value).max() / max(least, np.abs(value).max())
    worst = max(errors, key=errors.get)
    print(f"{case}: {worst} {errors[worst]:.1e}, logits {errors['logits']:.1e}", file=sys.stderr)
    assert errors[worst] < TOLERANCE, (worst, errors)

    saved = hf.read_config(tmp_path / "theirs")
    family = models.find_family(config["model_type"])
    assert family.Config.from_hf(saved, longest) == family.Config.from_hf(config, longest)
    hf.save(tmp_path / "ours", params, model, saved)
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto", attn_implementation="eager").eval()
    assert back.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(back(torch.from_numpy(ids)).logits, theirs(torch.from_numpy(ids)).logits)
    state = theirs.state_dict()
    assert back.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in back.state_dict().items())

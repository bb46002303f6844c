"""What a step is worth, counted by hand; and which chips are known."""

import jax
import pytest

from slpojax import flops, models

CONFIG = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_those_that_tokens_are_multiplied_with(tied):

    model = models.build(CONFIG | {"tie_word_embeddings": tied})
    shape = jax.eval_shape(model.init, jax.random.key(0))
    body, head = flops.weights(shape, jax.eval_shape(model.unembed, shape))
    attention, mlp, norms = 16 * 16 + 2 * 16 * 8 + 16 * 16, 3 * 16 * 24, 2 * 16
    assert (body, head) == (2 * (attention + mlp + norms) + 16, 16 * 100)


def test_an_online_reference_costs_a_third_more_and_scoring_first_two_for_a_weight_and_token():
    picked, whole = {"tokens": 7, "scored": 3}, {"tokens": 20, "scored": 11}
    alone, beside = (flops.of_step(10, 5, (each, picked)) for each in (flops.TRAIN, flops.TRAIN + flops.FORWARD))
    assert alone == 6 * 85 and beside / alone == pytest.approx(4 / 3)
    assert flops.of_step(10, 5, (flops.TRAIN, picked), (flops.FORWARD, whole)) == 6 * 85 + 2 * 255


KINDS = [("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12)]
KINDS += [("NVIDIA H200 NVL", 835e12), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None)]
KINDS += [("TPU v4 lite", None), ("cpu", None)]


@pytest.mark.parametrize(("kind", "peak"), KINDS)
def test_peaks(kind, peak):
    assert flops.peak(kind, 1) == peak

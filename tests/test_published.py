"""Public checkpoints of the families are read as they are published; what could change their numbers is refused."""

import jax
import numpy as np
import pytest
from published import PUBLISHED

from slpojax import models

LENGTH = 512  # tokens of the longest sequence, the default of config.data.max_length


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_public_config_means_what_transformers_reads_in_it(name):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = PUBLISHED[name].config
    ours = models.find_family(config["model_type"]).Config.from_hf(config, LENGTH)
    theirs = CONFIG_MAPPING[config["model_type"]].from_dict(config)
    heads, neox = theirs.num_attention_heads, config["model_type"] == "gpt_neox"
    expected = {
        "vocabulary": theirs.vocab_size,
        "width": theirs.hidden_size,
        "layers": theirs.num_hidden_layers,
        "heads": heads,
        "kv_heads": heads if neox else theirs.num_key_value_heads,
        "head_dim": getattr(theirs, "head_dim", None) or theirs.hidden_size // heads,
        "hidden": theirs.intermediate_size,
        "eps": theirs.layer_norm_eps if neox else theirs.rms_norm_eps,
        "tied": theirs.tie_word_embeddings,
    }
    assert {key: getattr(ours, key) for key in expected} == expected
    for layer in range(theirs.num_hidden_layers):
        rope = ours.kinds[layer].rope if ours.kinds else ours.rope
        said = theirs.rope_parameters
        said = said.get((getattr(theirs, "layer_types", None) or [""] * layer + [""])[layer], said)
        pairs = int(ours.head_dim * said.get("partial_rotary_factor", 1.0)) // 2
        assert len(rope.frequencies) == pairs
        if not getattr(theirs, "no_rope_layers", [1] * (layer + 1))[layer]:
            assert not any(rope.frequencies)
            continue
        plain = said["rope_theta"] ** -(np.arange(pairs) / pairs)
        # The shortest wave is never scaled, the longest by a factor.
        assert rope.frequencies[0] == pytest.approx(plain[0])
        assert rope.frequencies[-1] == pytest.approx(plain[-1] / said.get("factor", 1.0), rel=1e-12)
        assert rope.gain == pytest.approx(said.get("attention_factor", 1.0))


def test_windows_that_a_run_fills_are_kept():
    config = PUBLISHED["gemma-3-1b-it"].config
    assert not any(kind.window for kind in models.find_family("gemma3_text").Config.from_hf(config, 512).kinds)
    kinds = models.find_family("gemma3_text").Config.from_hf(config, 513).kinds
    assert [kind.window for kind in kinds[:7]] == [512] * 5 + [None, 512]
    assert not models.find_family("gemma2").Config.from_hf(PUBLISHED["gemma-2-2b-it"].config, 4096).kinds


@pytest.mark.check
@pytest.mark.parametrize("name", {model.parameters: name for name, model in PUBLISHED.items()}.values())
def test_a_public_model_has_as_many_parameters_as_its_publisher_counts(name):
    config, count = PUBLISHED[name]
    shapes = jax.eval_shape(models.build(config, max_length=LENGTH).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("Qwen2.5-0.5B", {"use_mrope": True}),
        ("Qwen2.5-0.5B", {"use_mrope": 0}),
        ("SmolLM2-135M", {"rope_interleaved": True}),
        ("SmolLM2-135M", {"is_llama_config": False}),
        ("gpt-neox-20b", {"attention_probs_dropout_prob": 0.1}),
        ("Mistral-7B-v0.1", {"attention_bias": True}),
        ("Qwen2-7B", {"qk_layer_norms": True}),
    ],
)
def test_another_value_of_a_harmless_key_is_refused(name, change):
    with pytest.raises(ValueError, match=f"config.json: .*{next(iter(change))}"):
        models.vocabulary(PUBLISHED[name].config | change, max_length=LENGTH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan; expected a finite number above 0"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps=-1.0; expected a finite number above 0"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps=1000.*expected a finite number"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5'; expected a finite number"),
        ({"rope_theta": 0}, "rope_theta=0; expected a finite number above 0"),
        ({"rope_scaling": 3}, "rope_scaling=3; expected an object or null"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor='2'; expected a finite number"),
        ({"rope_scaling": {"type": ["linear"], "factor": 2}}, "rope_type=.* is not supported"),
        ({"rope_scaling": {**PUBLISHED["Llama-3.1-405B"].config["rope_scaling"], "high_freq_factor": 1.0}}, "gives no"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes'; expected true or false"),
        ({"num_key_value_heads": 2.0}, "num_key_value_heads=2.0; expected a whole number from 1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000; expected positive whole numbers"),
        ({"hidden_act": ["silu"]}, "hidden_act of config.json"),
        ({"model_type": ["llama"]}, "unknown model_type"),
        ({"odd": "x" * 10**6}, "not understood: odd='xxx"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_value_out_of_its_range_is_named_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        models.vocabulary(PUBLISHED["TinyLlama-1.1B-Chat-v1.0"].config | change)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000

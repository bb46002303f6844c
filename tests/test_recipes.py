"""The shipped recipes with tiny models and data of the same types and layouts, without a hub."""

import importlib
import json

import jax
import numpy as np
import pytest
from data_tools import make_tokenizer
from reward_tools import TEMPLATE

from slpojax import hf, metrics, models, settings, train

SIZES = {
    "vocab_size": 260,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
    "eos_token_id": 0,
}
MODELS = {
    "qwen3_lora_dpo": SIZES | {"model_type": "qwen3", "head_dim": 12, "tie_word_embeddings": True},
    "gemma2_simpo": SIZES | {"model_type": "gemma2", "head_dim": 8, "sliding_window": 24},
    "tulu3_dpo": SIZES | {"model_type": "llama"},
    "smollm3_apo": SIZES | {"model_type": "smollm3", "no_rope_layer_interval": 4},
}
# What else the records of each data set hold, beside `prompt`, `chosen` and `rejected`.
BESIDE = {
    "qwen3_lora_dpo": {"prompt_id": "0a", "score_chosen": 8.0, "score_rejected": 6.5},
    "gemma2_simpo": {"prompt_id": "0a", "all_generated_responses": ["Yes", "No"], "all_rm_scores": [0.17, 0.12]},
    "tulu3_dpo": {"id": "0a", "source": "ai2-adapt-dev/made-up"},
    "smollm3_apo": {"chat_template_kwargs": {"enable_thinking": False}, "source": "made-up"},
}
FIRST = {"margin.sigmoid_norm": np.log(2), "dpo.sigmoid": np.log(2), "anchored.apo_zero": 1.0}
THINKING = "{% if enable_thinking is defined and enable_thinking is false %}{{ '[quiet]' }}{% endif %}"
RECORDS = 48


def write(folder, recipe) -> None:
    """A model's folder, and records as the recipe's data set has them: dialogues of an even share of turns."""
    model, rng = folder / "model", np.random.default_rng(0)
    built = models.build(MODELS[recipe])
    hf.save(model, jax.device_get(jax.jit(built.init)(jax.random.key(1))), built, MODELS[recipe])
    make_tokenizer(bos=True, template=THINKING + TEMPLATE).save_pretrained(model)
    said = [{"role": "user", "content": "Say a."}, {"role": "assistant", "content": "a"}]
    for name in ("train", "held_out"):
        lines = []
        for i in range(RECORDS):
            turns = [*(said if i % 2 else []), {"role": "user", "content": f"Say {'ab' * rng.integers(1, 4)}."}]
            ends = [{"role": "assistant", "content": x * int(rng.integers(1, 6))} for x in ("yes", "no")]
            record = {"prompt": turns[-1]["content"], "chosen": [*turns, ends[0]], "rejected": [*turns, ends[1]]}
            lines.append(json.dumps(record | BESIDE[recipe]) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))


@pytest.mark.check
@pytest.mark.parametrize("recipe", MODELS)
def test_it_trains_a_tiny_model_of_its_type(recipe, tmp_path):
    write(tmp_path, recipe)
    config = importlib.import_module(f"configs.{recipe}").get_config()
    source = {"path": str(tmp_path / "train.jsonl"), "eval_path": str(tmp_path / "held_out.jsonl")}
    source |= {"rows": "", "eval_rows": "", "eval_split": ""}
    names = [f"data.mixture.{name}." for name in config.data.mixture] or ["data."]
    changes = {f"{name}{key}": value for name in names for key, value in source.items()}
    changes |= {
        "output": str(tmp_path / "run"),
        "model.path": str(tmp_path / "model"),
        "model.dtype": "float32",
        "model.frozen_dtype": "float32",
        "data.max_length": 160,
        "data.max_prompt_length": 96,
        "batch_size": 8,
        "accumulate": 8,
        "warmup_steps": 2,
        "learning_rate": 3e-3,
        "epochs": 4.0,
        "mesh.fsdp": -1,
        "mesh.data": 2,
    }
    train.train(settings.resolve(config, changes, choices=train.CHOICES))
    rows = metrics.read_jsonl(tmp_path / "run" / "metrics.jsonl", "train")
    losses = [row["loss"] for row in rows]
    assert np.isfinite(losses).all()
    if config.objective.name in FIRST:
        assert losses[0] == pytest.approx(FIRST[config.objective.name], abs=1e-5)
    assert np.mean(losses[-4:]) < np.mean(losses[:4]), losses
    adapter = recipe == "qwen3_lora_dpo"
    files = {path.name for path in (tmp_path / "run" / "hf").iterdir()}
    assert ("adapter_model.safetensors" if adapter else "model.safetensors") in files

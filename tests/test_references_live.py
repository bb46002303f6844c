"""Frozen models of their own config.json, and exports, against transformers itself."""

import json
import shutil

import numpy as np
import pytest
import tiny
from goldens import make_models as witness
from test_train import configuration

from slpojax import bench, frozen, metrics, parts, train, training

pytestmark = [pytest.mark.check, pytest.mark.optimised]

_SMALL = {"vocab_size": 31, "max_position_embeddings": 64, "initializer_range": 0.3}
REFERENCES = {
    "theta": tiny.MODEL | {"rope_theta": 500.0, "rms_norm_eps": 0.1},
    "larger": tiny.MODEL | {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4},
    "neox": witness.CASES["neox_default"] | _SMALL,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tiny.make(tmp_path_factory.mktemp("references"))
    for name, config in REFERENCES.items():
        witness.transformers_model(config).save_pretrained(path / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(path / "model" / file, path / name / file)
    return path


def changes(folder, name: str, **more) -> dict:
    quiet = {"eval_every": 0, "checkpoint_every": -1, "export": False, "mesh.fsdp": 1}
    return {"reference.path": str(folder / name)} | quiet | more


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_is_computed_by_its_own_config(folder, name, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    config = configuration(folder, tmp_path, **changes(folder, name))
    made, method = bench.make(config), training.method(config)
    loaded = parts.load(config, made)
    scan = training.layout(config, method, [part.examples for part in loaded], made.grid).scan
    held_out = frozen.prepare(config, made, method, scan, loaded).parts[1]
    theirs = AutoModelForCausalLM.from_pretrained(folder / name, attn_implementation="eager").eval()
    for i in range(len(held_out.examples)):
        example = held_out.examples[i]
        for ours, response in zip(held_out.ref[i][0], example.responses, strict=True):
            ids = torch.tensor(np.concatenate([example.prompt, response])[None]).long()
            with torch.no_grad():
                logps = torch.log_softmax(theirs(ids).logits[0, :-1], -1)
            expected = logps[torch.arange(ids.shape[1] - 1), ids[0, 1:]][len(example.prompt) - 1 :]
            np.testing.assert_allclose(ours, expected.numpy(), atol=2e-5)


@pytest.mark.parametrize(("name", "objective"), [("neox", "dpo.sigmoid"), ("larger", "token_level.tdpo1")])
def test_an_online_reference_gives_the_cached_one_s_numbers(folder, name, objective):
    def first(mode: str, objective: str) -> dict:
        run = f"{name} {mode} {objective}"
        more = {"reference.mode": mode, "objective.name": objective, "steps": 1}
        train.train(configuration(folder, run, **changes(folder, name, **more)))
        return metrics.read_jsonl(folder / run / "metrics.jsonl", "train")[0] | {
            f"eval/{key}": value for key, value in metrics.read_jsonl(folder / run / "metrics.jsonl", "eval")[0].items()
        }

    cached, online = first("cached", "dpo.sigmoid"), first("online", objective)
    for part in ("", "eval/"):
        margin = online[f"{part}rewards/margins"]
        if objective == "token_level.tdpo1":  # its reward has the divergence, too, of beta nats a nat
            margin -= 0.1 * (online[f"{part}kl/chosen"] - online[f"{part}kl/rejected"])
            assert online[f"{part}kl/chosen"] > 0
        expected = cached[f"{part}rewards/margins"]
        assert margin == pytest.approx(expected, abs=1e-5) and abs(expected) > 1e-3


def test_generate_stops_where_training_taught_it_to(folder, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(tiny.MODEL | {"eos_token_id": 28}))
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": [28, 29]}')
    record = json.dumps({"prompt": "w1 w2", "response": " w3 w4"}) + "\n"
    (tmp_path / "texts.jsonl").write_text(8 * record)
    changed = {"data.format": "prompt_response", "data.candidates": 1, "data.rows": "", "data.eval_rows": ""}
    changed |= {"objective.name": "sft.token_mean", "reference.mode": "none", "checkpoint_every": -1}
    changed |= {"model.path": str(tmp_path / "model"), "data.path": str(tmp_path / "texts.jsonl"), "steps": 40}
    train.train(configuration(tmp_path, "out", **changed))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "hf")
    asked = tokenizer("w1 w2", return_tensors="pt")
    with torch.no_grad():
        answer = model.generate(**asked, max_new_tokens=20, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert answer.tolist() == [4, 5, tokenizer.eos_token_id]
    assert model.config.eos_token_id == [0, 28] and model.generation_config.eos_token_id == [0, 28, 29]

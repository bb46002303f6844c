"""Folders of adapters where a judge or a reward model is expected: the scores are those of the summed weights."""

import json
import shutil

import data_tools
import numpy as np
import programs
import pytest
import reward_tools
import tiny
from safetensors.numpy import load_file, save_file

from configs import base
from slpojax import evaluate, grid, hf, judges, models, rewards, settings, train
from slpojax.bench import making

CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 6, "target_modules": ["q_proj"]}
EXACT = 1e-5  # float32 sums in another order, of scores near 1


def adapter_of(model, path, maps, *, whole=None, **config):
    """Write a folder as peft does, with NumPy, and beside it one of the summed weights; return both."""
    random, tensors, merged = np.random.default_rng(0), {}, load_file(model / "model.safetensors")
    for name in maps:
        out, into = merged[f"{name}.weight"].shape
        a, b = (random.normal(0, 0.3, size).astype(np.float32) for size in ((3, into), (out, 3)))
        tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        merged[f"{name}.weight"] = (merged[f"{name}.weight"] + 2.0 * (b.astype(np.float64) @ a)).astype(np.float32)
    for name, tensor in (whole or {}).items():
        tensors[f"base_model.model.{name}"] = merged[name] = tensor
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps(CONFIG | {"base_model_name_or_path": str(model)} | config))
    summed = path.with_name(f"{path.name}-summed")
    shutil.copytree(model, summed)
    save_file(merged, summed / "model.safetensors")
    return path, summed


@pytest.fixture(scope="module")
def of_rewards(tmp_path_factory):
    """A language model, an adapter that brings it a score head, and the reward model that both are."""
    path = tmp_path_factory.mktemp("rewards")
    scores = reward_tools.make(path / "made", "llama")
    head = load_file(scores / "model.safetensors")["score.weight"]
    model = path / "model"
    shutil.copytree(scores, model)
    tensors = load_file(scores / "model.safetensors")
    tensors["lm_head.weight"] = np.random.default_rng(1).normal(0, 0.3, (260, 16)).astype(np.float32)
    save_file({name: x for name, x in tensors.items() if name != "score.weight"}, model / "model.safetensors")
    config = json.loads((model / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
    (model / "config.json").write_text(json.dumps(config))
    maps = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    adapter, summed = adapter_of(model, path / "adapter", maps, whole={"score.weight": head}, task_type="SEQ_CLS")
    shutil.copy(scores / "config.json", summed)
    return adapter, summed


@pytest.mark.check
def test_a_reward_model_s_adapter_scores_as_the_summed_weights(of_rewards):
    loaded = [rewards.load(folder, grid.one_device(), key="judge.path") for folder in of_rewards]
    found, expected = (rewards.scores(one, reward_tools.PROMPTS, reward_tools.ANSWERS) for one in loaded)
    np.testing.assert_allclose(found, expected, atol=EXACT)
    assert np.ptp(found) > 0.1
    asked = [judges.Question(p, tuple(a)) for p, a in zip(reward_tools.PROMPTS, reward_tools.ANSWERS, strict=True)]
    judge = judges.build("reward_model.score", path=str(of_rewards[0]))
    np.testing.assert_allclose(judge.ask(asked), expected, atol=EXACT)


def test_an_adapter_that_makes_no_reward_model_is_refused(of_rewards, tmp_path):
    adapter, copy = of_rewards[0], tmp_path / "adapter"
    shutil.copytree(adapter, copy)
    tensors = load_file(copy / "adapter_model.safetensors")
    del tensors["base_model.model.score.weight"]
    save_file(tensors, copy / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"judge.path: .* is an adapter of a language model, .*, without a score head"):
        judges.build("reward_model.score", path=str(copy))
    file = copy / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"task_type": "CAUSAL_LM"}))
    with pytest.raises(ValueError, match="task_type='CAUSAL_LM'; expected SEQ_CLS, one of a reward model: give one"):
        judges.build("reward_model.score", path=str(copy))


def test_an_adapter_is_read_by_the_padding_of_its_own_tokenizer(of_rewards, tmp_path, capsys):
    adapter, model = of_rewards[0], of_rewards[0].with_name("model")

    def pad(folder, base, **config):
        return rewards._pad(folder, base, config, data_tools.make_tokenizer())  # whose padding is EOS, id 0

    assert pad(adapter, model, pad_token_id=259) == 259 and pad(model, model, pad_token_id=259) == 259
    shutil.copytree(adapter, tmp_path / "own")
    (tmp_path / "own" / "tokenizer.json").write_text("{}")
    assert pad(tmp_path / "own", model) == 0 == pad(tmp_path / "own", model, pad_token_id=259)
    assert "at the last token but id 0, with which its tokenizer pads; config.json of" in capsys.readouterr().out


@pytest.mark.check
def test_a_policy_s_adapter_judges_as_the_summed_weights(of_rewards, tmp_path):
    model = of_rewards[0].with_name("model")
    adapter, summed = adapter_of(model, tmp_path / "adapter", [f"model.layers.{n}.mlp.up_proj" for n in range(2)])
    asked = [judges.Question("Go on:", (" yes", " no, not yet")), judges.Question("And?", ("So.", "Well"))]

    def said(name, path, reference=model):
        context = judges.Context(policy=str(path), reference=str(reference))
        return judges.build(f"policy.{name}", context).ask(asked)

    for name in ("compare", "implicit"):
        np.testing.assert_allclose(said(name, adapter), said(name, summed), atol=EXACT)
    np.testing.assert_array_equal(said("implicit", adapter, reference=adapter), 0.0)
    assert np.abs(said("implicit", adapter)).min() > 0.01


def configuration(folder, **changes):
    rewarded = {"model.head": "score", "objective.name": "reward.bradley_terry", "reference.mode": "none"}
    values = tiny.changes(folder, "out") | {"model.weights": "load", "mesh.fsdp": 1} | rewarded
    values |= {
        "compiled": str(folder / "compiled"),
        "train.what": "lora",
        "lora.rank": 2,
        "lora.beside": "^head/",
        "data.end": "template",
        **changes,
    }
    return settings.resolve(base.get_config(), values, choices=train.CHOICES)


def test_a_score_head_that_is_drawn_is_trained(tmp_path):
    model = models.build(tiny.MODEL, head="score")

    def require(hf_config=tiny.MODEL, **changes):
        config = configuration(tmp_path, **changes)
        making._require_trained_head(config, model, hf_config, making.plan(config, model), None)

    require()
    require({"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}, **{"lora.beside": ""})
    for changes, key in (
        ({"lora.beside": ""}, r"lora.beside='' .*config.model.path=.* set --config.lora.beside='\^head/'"),
        ({"lora.beside": "norm"}, r"lora.beside='norm' .* set --config.lora.beside='norm\|\^head/'"),
        ({"train.what": "layers/0/"}, r"train.what='layers/0/' .* set --config.train.what='layers/0/\|\^head/'"),
    ):
        with pytest.raises(ValueError, match=f"config.{key}"):
            require(**changes)


@pytest.mark.check
def test_a_run_of_a_reward_model_s_adapter_ends_in_a_folder_that_judges(tmp_path):
    folder = programs.make(tmp_path)
    for merged in (False, True):
        train.train(configuration(folder, steps=3, export_merged=merged, output=str(folder / f"merged {merged}")))
    adapter, merged = (folder / f"merged {value}" / "hf" for value in (False, True))
    written = json.loads((adapter / "adapter_config.json").read_text())
    assert (written["task_type"], written["modules_to_save"]) == ("SEQ_CLS", ["score"])
    assert not (merged / "adapter_config.json").exists() and hf.read_config(merged, also="ForSequenceClassification")
    texts = ["w1 w2", "w3"], [[" w4", " w5 w6"], [" w7 w8", " w9"]]
    found, expected = (rewards.scores(rewards.load(path, grid.one_device()), *texts) for path in (adapter, merged))
    np.testing.assert_allclose(found, expected, atol=EXACT)
    assert np.ptp(found) > 0.01


def test_a_reference_that_is_an_adapter_answers_as_a_whole_model(tmp_path, monkeypatch):
    """Of other rank than the adapter that the run trains, say, which is no reason to refuse it."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    asked = []
    monkeypatch.setattr(evaluate.generate, "run", lambda config, *_, **__: asked.append(config) or tmp_path / "file")
    monkeypatch.setattr(evaluate.judge, "run", lambda *_, **__: tmp_path / "judged")
    monkeypatch.setattr(evaluate.records, "read", lambda path: iter(()))
    changes = {"judge.name": "rules.longest", "evaluate.constant": "", "train.what": "lora", "model.path": "model"}
    for path, what in ((str(tmp_path / "adapter"), "all"), (str(tmp_path), "lora")):
        values = changes | {"reference.path": path, "model.frozen_dtype": "bfloat16"}
        config = settings.resolve(base.get_config(), values, choices=evaluate.CHOICES)
        evaluate.ask(config, evaluate.Policy("mine", object(), None, "", ""), tmp_path)
        policy, reference = asked[-2:]
        assert (policy.train.what, policy.model.path) == ("lora", "model")
        assert (reference.train.what, reference.model.path) == (what, path)

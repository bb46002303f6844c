"""Reward models: read where transformers reads them, trained on preferences, written and found again."""

import functools
import itertools
import json
import math

import jax
import numpy as np
import pytest
import reward_tools
import tiny
from model_tools import plain
from step_tools import grid_of

from configs import base
from slpojax import folders, grid, hf, metrics, models, objectives, rewards, settings, train, vocabulary
from slpojax.base import Logps


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return reward_tools.make(tmp_path_factory.mktemp("reward"), "qwen3")


@pytest.fixture(scope="module")
def rewarder(folder):
    return rewards.load(folder, grid.one_device())


def alone(rewarder, ids) -> float:
    """The reward of one sequence, from the final hidden state of its last token that is not the padding one."""
    while ids[-1] == rewarder.pad:
        ids = ids[:-1]
    row = np.zeros((1, 96), np.int32)
    row[0, : len(ids)] = ids  # causal: what stands behind changes nothing
    return float(_everywhere(rewarder.model)(rewarder.params, plain(row))[len(ids) - 1])


@functools.cache
def _everywhere(model):
    return jax.jit(lambda params, rows: model.apply(params, rows, None)[0][0] @ model.score(params))


def test_answers_behind_one_prompt_are_read_as_each_alone_is(rewarder):
    """Messages by the template to its end, text with BOS and EOS."""
    found = rewards.scores(rewarder, reward_tools.PROMPTS, reward_tools.ANSWERS, cells=64)
    assert found.shape == (3, 3) and found.dtype == np.float32
    pairs = zip(reward_tools.PROMPTS, reward_tools.ANSWERS, strict=True)
    expected = [[alone(rewarder, reward_tools.texts(p, a)) for a in some] for p, some in pairs]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert found[0, 0] == pytest.approx(found[0, 2], abs=1e-5) and np.ptp(found) > 0.1


@pytest.mark.check
def test_several_devices_give_the_same(folder, rewarder):
    expected = rewards.scores(rewarder, reward_tools.PROMPTS, reward_tools.ANSWERS)
    for sizes in ((4, 1, 1), (2, 2, 2)):
        found = rewards.scores(rewards.load(folder, grid_of(*sizes)), reward_tools.PROMPTS, reward_tools.ANSWERS)
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_text_is_read_up_to_what_pads_it(rewarder):
    ids = reward_tools.texts("Go on:", " yes")
    for pad, end in ((None, len(ids)), (259, len(ids)), (0, len(ids) - 1)):  # 0 is EOS
        ((found,),) = rewards._tokens(rewarder._replace(pad=pad), ["Go on:"], [[" yes"]])
        assert found.tolist() == ids[:end]
    with pytest.raises(ValueError, match="prompt 4: it and its answer are one token at most"):
        rewards._read_to(np.int32([1, 0]), 0, 4)


def test_texts_without_a_first_token_in_common(rewarder, monkeypatch):
    apart = [[1, 20, 21], [30, 31]]
    monkeypatch.setattr(rewards, "_tokens", lambda *_: iter([[np.int32(ids) for ids in apart]]))
    found = rewards.scores(rewarder, ["a"], [["b", "c"]])
    np.testing.assert_allclose(found[0], [alone(rewarder, ids) for ids in apart], atol=2e-5)
    assert rewards._common([np.int32([5, 6]), np.int32([7, 6])]) == 0
    assert rewards._common([np.int32([5, 6, 7]), np.int32([5, 6, 7])]) == 2
    assert rewards._common([np.int32([5, 6, 7]), np.int32([5, 6])]) == 1


def test_special_tokens_in_an_answer_close_no_turn(rewarder):
    (ids,) = next(rewards._tokens(rewarder, [[{"role": "user", "content": "Hi"}]], [["a<eos>\n[user]b"]]))
    assert (ids == 0).sum() == 2  # the two that the template writes


def test_what_is_too_long_is_refused_cut_or_skipped_and_counted(rewarder, capsys):
    rewarder = rewarder._replace(limit=24)
    prompts, answers = ["Say:", "Say:"], [[" a", " b"], [" c", " d" * 40]]
    with pytest.raises(ValueError, match="prompt 1, answer 1: 86 tokens are more than the reward model reads, 24"):
        rewards.scores(rewarder, prompts, answers)
    ids = reward_tools.texts("Say:", " d" * 40)[:24]
    cut = rewards.scores(rewarder, prompts, answers, too_long="cut")
    assert cut[1, 1] == pytest.approx(alone(rewarder, ids), abs=1e-5)
    assert "1 answers cut, 0 prompts skipped" in capsys.readouterr().out
    skipped = rewards.scores(rewarder, prompts, answers, too_long="skip")
    assert np.isnan(skipped[1]).all() and np.isfinite(skipped[0]).all()
    assert "0 answers cut, 1 prompts skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("prompts", "answers", "message"),
    [
        ([""], [["a"]], "prompt 0 is empty"),
        (["a", "b"], [["a"]], "2 prompts with 1 lists of 1 answers"),
        (["a", "b"], [["a"], ["b", "c"]], "2 prompts with 2 lists of 1, 2 answers"),
        (["a"], [[]], "1 prompts with 1 lists of 0 answers"),
    ],
)
def test_what_is_no_question_is_refused(folder, prompts, answers, message):
    rewarder = rewards.Rewarder(folder, None, None, reward_tools.make_tokenizer(bos=True), grid.one_device(), None, 96)
    with pytest.raises(ValueError, match=message):
        rewards.scores(rewarder, prompts, answers)
    with pytest.raises(ValueError, match="unknown too_long 'drop'"):
        rewards.scores(rewarder, ["a"], [["b"]], too_long="drop")


def test_a_folder_that_is_no_reward_model_is_refused(tmp_path):
    config = tiny.MODEL | {"architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is a language model; expected a reward model"):
        rewards.load(tmp_path, grid.one_device())
    for more in ({}, {"id2label": {"0": "bad", "1": "good", "2": "best"}}, {"num_labels": 5}):
        several = config | {"architectures": ["LlamaForSequenceClassification"]} | more
        (tmp_path / "config.json").write_text(json.dumps(several))
        with pytest.raises(ValueError, match="a classifier of [235] labels"):
            rewards.load(tmp_path, grid.one_device())
    with pytest.raises(ValueError, match="a classifier or reward model"):
        hf.read_config(tmp_path)
    model = models.build(tiny.MODEL, head="score")
    with pytest.raises(ValueError, match="no log-probs"):
        model.unembed({})


# ---- objectives ------------------------------------------------------------------------------------------------------


def loss(name: str, values, lengths, **more) -> float:
    """The loss of one example whose score head gives `values` [K, T]."""
    score, hyper = more.pop("score", None), more
    objective = objectives.build(name, **hyper)
    none = np.zeros(np.shape(values), np.float32)
    inputs = {"policy": Logps(none, none, np.int32(lengths)), "reward": np.float32(values), "score": score}
    return float(jax.jit(lambda x: objective.function(**x)[0])({key: inputs[key] for key in objective.needs}))


def test_losses_are_likelihoods_of_the_preferences():
    """Float64, from the last token of each: Bradley-Terry of a pair, Plackett-Luce by counting all rankings."""
    values, lengths = [[9.0, 0.7, 5.0], [-0.4, 8.0, 8.0], [2.0, 2.0, 1.1]], [2, 1, 3]
    r = [0.7, -0.4, 1.1]
    wins = math.exp(r[0]) / (math.exp(r[0]) + math.exp(r[1]))
    assert loss("reward.bradley_terry", values, lengths) == pytest.approx(-math.log(wins), abs=1e-6)
    centred = -math.log(wins) + 0.25 * (r[0] + r[1]) ** 2
    assert loss("reward.bradley_terry", values, lengths, centre=0.25) == pytest.approx(centred, abs=1e-6)
    behind = math.exp(r[0] - 0.6) / (math.exp(r[0] - 0.6) + math.exp(r[1]))
    got = loss("reward.bradley_terry_margin", values, lengths, score=np.float32([3.0, 1.0, 0.0]), alpha=0.3)
    assert got == pytest.approx(-math.log(behind), abs=1e-6)

    def chance(ranking) -> float:
        """Of drawing this ranking without replacement, in proportion to exp(r)."""
        left, p = list(range(3)), 1.0
        for k in ranking:
            p *= math.exp(r[k]) / sum(math.exp(r[j]) for j in left)
            left.remove(k)
        return p

    assert sum(map(chance, itertools.permutations(range(3)))) == pytest.approx(1.0)
    assert loss("reward.plackett_luce", values, lengths) == pytest.approx(-math.log(chance((0, 1, 2))), abs=1e-6)
    level = -math.log(chance((0, 1, 2))) + 0.5 * (2 * np.mean(r)) ** 2
    assert loss("reward.plackett_luce", values, lengths, centre=0.5) == pytest.approx(level, abs=1e-6)
    absent = loss("reward.plackett_luce", values, [2, 1, 0])
    assert absent == pytest.approx(loss("reward.bradley_terry", values, lengths), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "change", "key"),
    [("bradley_terry", {"centre": -1.0}, "centre"), ("bradley_terry_margin", {"alpha": -1.0}, "alpha")],
)
def test_hyperparameters_that_mean_nothing_are_refused(name, change, key):
    with pytest.raises(ValueError, match=f"objective.{key} = -1.0: expected a number from 0"):
        objectives.build(f"reward.{name}", **change)


# ---- runs ------------------------------------------------------------------------------------------------------------

REWARD = {"objective.name": "reward.bradley_terry", "model.head": "score", "data.end": "template"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("rewards"))


def run(workplace, output, **changes):
    values = tiny.changes(workplace, output) | REWARD | {"steps": 3, "eval_every": 0, "checkpoint_every": -1} | changes
    train.train(settings.resolve(base.get_config(), values, choices=train.CHOICES))
    return metrics.read_jsonl(workplace / output / "metrics.jsonl")


@pytest.mark.check
def test_a_run_writes_a_reward_model_that_gives_what_it_logged(workplace):
    rows = run(workplace, "one", learning_rate=0.05)
    first, last = (row for row in rows if row["split"] == "eval")
    assert last["loss"] != first["loss"] and "logps/chosen" not in last
    folder = workplace / "one" / "hf"
    config = hf.read_config(folder, also=folders.SCORING)
    assert config["architectures"] == ["LlamaForSequenceClassification"] and folders.labels(config) == 1
    assert config["pad_token_id"] is None  # the tokenizer has EOS alone

    rewarder = rewards.load(folder, grid.one_device())
    pairs = [json.loads(line) for line in (workplace / "pairs.jsonl").read_text().splitlines()][20:]
    found = rewards.scores(rewarder, [p["prompt"] for p in pairs], [[p["chosen"], p["rejected"]] for p in pairs])
    for k, name in enumerate(("chosen", "rejected")):
        assert found[:, k].mean() == pytest.approx(last[f"rewards/{name}"], abs=1e-5)
    assert np.mean(found[:, 0] > found[:, 1]) == pytest.approx(last["rewards/accuracies"])


@pytest.mark.check
def test_a_run_starts_from_a_reward_model_head_and_all(workplace):
    *_, last = run(workplace, "first", learning_rate=0.05)
    again = {"model.path": str(workplace / "first" / "hf"), "model.weights": "load", "steps": 1}
    assert run(workplace, "second", **again)[0]["loss"] == pytest.approx(last["loss"], abs=1e-5)


@pytest.mark.check
def test_a_language_model_gets_a_drawn_head_and_nothing_else_changes(workplace):
    run(workplace, "words", **{"objective.name": "sft.token_mean", "model.head": "words", "data.candidates": 1})
    words, start = workplace / "words" / "hf", {"model.weights": "load", "learning_rate": 0.0}
    run(workplace, "drawn", **start, **{"model.path": str(words)})
    before, drawn = (rewards_of(folders.tensor_files(path)) for path in (words, workplace / "drawn" / "hf"))
    assert before.keys() - drawn.keys() == {"lm_head.weight"} and drawn.keys() - before.keys() == {"score.weight"}
    for name in before.keys() & drawn.keys():
        np.testing.assert_array_equal(before[name], drawn[name])
    assert drawn["score.weight"].shape == (1, 16) and 0.15 < drawn["score.weight"].std() < 0.5


def rewards_of(files):
    """Every tensor of a folder, by name."""
    found = {}
    for name, file in files.items():
        with folders.open_tensors(file) as tensors:
            found[name] = tensors.get_tensor(name)
    return found


@pytest.mark.check
def test_mesh_and_accumulation_change_no_number(workplace):
    ranked = {"objective.name": "reward.plackett_luce", "objective.centre": 0.01, "data.format": "ranked"}
    ranked |= {"data.path": str(workplace / "ranked.jsonl"), "data.chat_template": "dialogue", "data.candidates": 4}
    ranked |= {"data.row_length": 64, "batch_size": 8}
    whole = run(workplace, "whole", **ranked)
    cut = {"mesh.fsdp": 2, "mesh.tensor": 2, "accumulate": 8}
    for ours, theirs in zip(run(workplace, "cut", **ranked | cut), whole, strict=True):
        for name in [name for name in theirs if name == "loss" or "/" in name]:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.head": "words"}, "reward.bradley_terry trains a score head.*--config.model.head=score"),
        ({"objective.name": "dpo.sigmoid"}, "objective dpo.sigmoid reads log-probs, and a reward model.*head=words"),
        ({"objective.name": "reward.bradley_terry + sft.token_mean"}, "reads log-probs, and a reward model"),
        ({"selector.name": "likeliest"}, "selector likeliest reads log-probs"),
        ({"diagnostics": 2}, "config.diagnostics=2 reads log-probs"),
        ({"data.end": "eos"}, "data.end='eos' cuts what a chat template writes.*--config.data.end=template"),
        ({"data.turns": "last"}, "data.turns='last' lets a part of a response count.*--config.data.turns=all"),
        ({"world": "reviews"}, "config.world='reviews' judges what the policy writes"),
        ({"objective.name": "reward.bradley_terry_margin"}, "asks for the candidates' scores"),
        ({"data.candidates": 1}, "reads 2 responses of an example"),
    ],
)
def test_what_does_not_go_with_a_score_head_is_refused(workplace, changes, message):
    with pytest.raises(ValueError, match=message):
        run(workplace, "refused", **changes)


def test_a_token_to_pad_with_ends_no_text():
    tokenizer = reward_tools.make_tokenizer()
    assert vocabulary.padding(tokenizer, None, ()) is None and vocabulary.padding(tokenizer, 7, ()) == 7
    assert vocabulary.padding(tokenizer, 7, (7,)) is None
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|finetune_right_pad_id|>"]})
    assert vocabulary.padding(tokenizer, 0, ()) == len(tokenizer) - 1

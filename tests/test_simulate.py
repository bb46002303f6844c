"""A world made into a run: what its reference and pairs depend on, where they lie, and how policies are judged."""

import json
import math
import os
import pathlib
import runpy
import shutil
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest

from configs import base
from slpojax import (
    checkpoint,
    defaults,
    hf,
    metrics,
    models,
    named,
    outputs,
    resuming,
    settings,
    simulate,
    train,
    worlds,
)
from slpojax.data import formats
from slpojax.worlds import reviews
from slpojax.worlds.reviews import language

ROOT = pathlib.Path(__file__).resolve().parents[1]


def quickstart(output, **changes):
    config = runpy.run_path(str(ROOT / "configs/quickstart.py"))["get_config"]()
    return settings.resolve(config, {"output": str(output), **changes}, choices=train.CHOICES)


SMALL = {"text_count": 40, "pair_count": 600, "held_out": 24, "judged": 120}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A world made small, whose reference was never trained: (output, configurations run, what prepare returned)."""
    calls = []

    def untrained(config):
        calls.append(config)
        hf_config = hf.read_config(config.model.path) | {"initializer_range": 0.2}
        model = models.build(hf_config)
        params = jax.jit(model.init)(jax.random.key(config.seed))
        beside = hf.Beside(tokenizer=pathlib.Path(config.model.path))
        hf.save(pathlib.Path(config.output) / "hf", params, model, hf_config, beside=beside)

    output = tmp_path_factory.mktemp("world") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reviews, "WORLD", reviews.WORLD._replace(**SMALL))
        patch.setattr(simulate, "BATCH", 128)
        yield output, calls, simulate.prepare(quickstart(output), untrained)


def stop(config):
    raise InterruptedError


def read(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def test_prepare_writes_texts_tokenizer_and_config(prepared):
    from transformers import AutoTokenizer

    output, (sft,), config = prepared
    assert (sft.objective.name, sft.reference.mode, sft.world) == ("sft.token_mean", "none", "")
    assert len(read(sft.data.path)) == 40 and len(read(sft.data.eval_path)) == 24
    assert config.world == "reviews" and config.data.format == "pairs"
    folder = pathlib.Path(config.model.path).parent
    assert folder.parent == output.parent and folder.name.startswith("reviews-"), "beside the outputs"
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    for _, prompt in language.prompts(12):
        assert tokenizer(prompt)["input_ids"] == [language.words().index(word) for word in prompt.split()]
        assert tokenizer(prompt)["input_ids"] == language.encode(prompt).tolist()
    assert tokenizer.eos_token_id == language.words().index(language.EOS)
    assert tokenizer.decode(tokenizer(" i liked it .")["input_ids"]) == "i liked it ."


def test_pairs_are_labelled_by_bradley_and_terry(prepared):
    _, _, config = prepared
    pairs = read(config.data.path)
    assert len(pairs) == 600 and len(read(config.data.eval_path)) == 24
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    gold = np.array([[language.reward(pair[name].split()) for name in ("chosen", "rejected")] for pair in pairs])
    assert gold.tolist() == [[pair["score_chosen"], pair["score_rejected"]] for pair in pairs]
    gap = gold[:, 0] - gold[:, 1]
    gap = gap[gap != 0]
    better = 1 / (1 + np.exp(-np.abs(gap)))  # the chance that the better one was chosen
    assert abs((gap > 0).sum() - better.sum()) < 4 * math.sqrt((better * (1 - better)).sum())
    assert 0.55 < (gap > 0).mean() < 0.98


POOLED = {"data.format": "pool", "data.candidates": 4, "objective.name": "listwise.rnce"}


@pytest.fixture(scope="module")
def pooled(prepared):
    """What prepare returned for a run that reads pools, of the world whose pairs are there."""
    output, _, _ = prepared
    return simulate.prepare(quickstart(output.with_name("pooled"), **POOLED), stop)


@pytest.mark.check
def test_pools_are_made_once_beside_the_pairs_which_they_leave_alone(prepared, capsys):
    output, _, config = prepared
    before = pathlib.Path(config.data.path).read_bytes()
    asked = quickstart(output.with_name("pooled"), **POOLED)
    pooled = simulate.prepare(asked, stop)
    assert simulate.is_made(quickstart(output)) and simulate.is_made(asked)
    assert not simulate.is_made(quickstart(output, **POOLED | {"data.candidates": 3}))
    assert pooled.model.path == config.model.path and pathlib.Path(config.data.path).read_bytes() == before
    capsys.readouterr()
    assert simulate.prepare(asked, stop) == pooled and "4 answers" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="data.format=pool with data.candidates=1: expected pools of 2"):
        simulate.prepare(quickstart(output, **POOLED | {"data.candidates": 1}), stop)


@pytest.mark.check
def test_a_pool_holds_answers_with_their_gold_rewards_of_which_one_differs_from_the_preferred(pooled):
    pools = read(pooled.data.path)
    assert len(pools) == 600 and len(read(pooled.data.eval_path)) == 24
    for pool in pools:
        best, *others = pool["responses"]
        assert best.strip() and len(others) == 3 and any(text.strip() and text != best for text in others)
        assert pool["scores"] == [language.reward(text.split()) for text in pool["responses"]]
        assert formats.pool(pool).responses == tuple(pool["responses"])


@pytest.mark.check
def test_duels_by_bradley_and_terry_find_the_preferred_answer_of_a_pool(pooled):
    """The best of four wins with a chance between that of three duels, and that of one with the next best."""
    gold = np.array([pool["scores"] for pool in read(pooled.data.path)])
    best, others = gold.max(1), np.sort(gold, axis=1)[:, :-1]
    wins = 1 / (1 + np.exp(others - best[:, None]))
    least, most = np.prod(wins, axis=1).mean(), wins[:, -1].mean()
    share, error = (gold[:, 0] == best).mean(), 3 * 0.5 / math.sqrt(len(gold))
    assert least - error < share < most + error and share > 0.25 + error, "by chance it would be one in four"


def test_scores_are_the_gold_rewards_of_the_reference_by_prompt(prepared):
    output, _, config = prepared
    found, first = simulate.scores(quickstart(output)), read(config.data.path)[0]
    assert set(found) == {prompt for _, prompt in language.prompts(12)}
    assert found[first["prompt"]][:2].tolist() == [first["score_chosen"], first["score_rejected"]]
    assert sum(map(len, found.values())) == 2 * 600


def folder_of(config):
    """Where the world of a configuration lies, or would lie."""
    module, world = worlds.find(config.world)
    return simulate.world_folder(config, module, world)


def different(key):
    """Another value of a key of the base configuration."""
    value = named.flatten(base.get_config().to_dict(), ".").get(key)
    others = {"output": "elsewhere/run", "mesh.data": 4, "objective.name": "dpo.ipo", "optimizer.name": "lion"}
    others |= {"selector.name": "likeliest", "data.rows": "0:1000", "data.eval_rows": "0:100"}
    others |= {"model.dtype": "bfloat16", "frontier.seeds": (7,), "frontier.budgets": (7.0,)}
    others |= {"generate.temperature": (0.5,), "generate.stop": ("x",), "lora.targets": ("query",)}
    if key in others:
        return others[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return next((word for word in defaults.WORDS.get(key, ()) if word != value), f"{value}x")
    return value + 1 if value + 1 <= defaults.RANGES[key].most else value / 2


KEYS = sorted(named.flatten(base.get_config().to_dict(), ".").keys() - {"world", "output"})


def test_the_reference_depends_on_the_seed_and_on_no_other_key_of_a_run(prepared):
    """And so do the pairs: runs with another objective, other rows, another mesh, ... share them."""
    output, _, _ = prepared
    before = folder_of(quickstart(output))
    assert [key for key in KEYS if folder_of(quickstart(output, **{key: different(key)})) != before] == ["seed"]


def test_what_a_run_sets_does_not_reach_the_reference(prepared):
    output, (sft,), _ = prepared
    changes = {"data.rows": "0:10", "moments": "bfloat16", "clip_norm": 0.1, "data.ties": "keep", "epochs": 9.0}
    world = worlds.find("reviews")[1]
    config = quickstart(output, **changes, **{"log_every": 7, "mesh.fsdp": 2})
    made = simulate.reference_config(config, world, pathlib.Path(sft.output))
    assert resuming.differences(sft.to_dict(), made.to_dict()) == {}
    assert made.data.rows == "" and (made.log_every, made.mesh.fsdp) == (7, 2)


@pytest.mark.check
def test_runs_share_what_is_there_and_other_settings_lie_beside_it(prepared, capsys):
    output, _, config = prepared
    other = {"objective.name": "unpaired.kto", "data.unpair": True, "data.mismatched": True, "steps": 3}
    again = simulate.prepare(quickstart(output.with_name("other"), **other), stop)
    assert again.model.path == config.model.path and again.data.path == config.data.path
    assert "found in" in capsys.readouterr().out
    with pytest.raises(InterruptedError):
        simulate.prepare(quickstart(output, seed=1), stop)
    folders = {path.name.split("-")[0] for path in output.parent.iterdir()}
    assert folders == {"reviews"} and len([*output.parent.glob("reviews-*")]) == 2
    assert simulate.prepare(quickstart(output), stop) == config


def test_a_run_may_move_with_its_world(prepared, tmp_path):
    output, _, config = prepared
    moved = shutil.copytree(output.parent, tmp_path / "elsewhere") / "run"
    there = simulate.prepare(quickstart(moved), stop)
    assert there.data.path == str(moved.parent / pathlib.Path(config.data.path).relative_to(output.parent))
    assert resuming.differences(config.to_dict(), there.to_dict()) == {}
    other = simulate.prepare(quickstart(moved), stop).to_dict()
    assert resuming.differences(config.to_dict(), other | {"seed": 1}) == {"seed": (0, 1)}


def test_another_run_in_the_output_is_refused_before_its_reference_is_made(prepared, monkeypatch):
    output, _, _ = prepared
    (output / "checkpoints").mkdir(parents=True)
    refuse = mock.Mock(side_effect=ValueError("another run"))
    monkeypatch.setattr(checkpoint, "require_same_config", refuse)
    with pytest.raises(ValueError, match="another run"):
        simulate.prepare(quickstart(output, seed=2), stop)
    shutil.rmtree(output)


def test_a_folder_in_which_a_run_works_is_not_touched(prepared):
    output, _, _ = prepared
    (output / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)
    with outputs.alone(output), pytest.raises(ValueError, match="another run works in"):
        simulate.prepare(quickstart(output), stop)
    assert (output / "checkpoints" / "3.orbax-checkpoint-tmp").is_dir()
    shutil.rmtree(output)


OTHERS = {  # another objective -> what more its error asks for
    "margin.odpo": "",
    "anchored.sppo": "--config.data.format=bradley_terry",
    "unpaired.kto": "--config.data.unpair=True --config.data.mismatched=True",
    "token_level.tdpo1": "--config.reference.mode=online",
}


def other_objective(config, output, name, more=""):
    """The quickstart on the pairs that were prepared, with another objective and the keys that its error named."""
    changes = {"model.path": config.model.path, "data.path": config.data.path, "data.eval_path": "", "world": ""}
    keys = dict(word.removeprefix("--config.").split("=") for word in more.split())
    return quickstart(output, **changes, **keys, **{"objective.name": name, "steps": 2, "export": False})


@pytest.mark.parametrize("name", [name for name, more in OTHERS.items() if more])
def test_another_objective_s_error_says_which_keys_it_takes(prepared, tmp_path, name):
    with pytest.raises(ValueError, match=f"objective {name} .*{OTHERS[name]}"):
        train.train(other_objective(prepared[2], tmp_path, name))


@pytest.mark.check
@pytest.mark.parametrize("name", OTHERS)
def test_another_objective_trains_with_the_keys_that_its_error_names(prepared, tmp_path, name):
    train.train(other_objective(prepared[2], tmp_path, name, OTHERS[name]))
    rows = metrics.read_jsonl(tmp_path / "metrics.jsonl", "train")
    assert all(np.isfinite(row["loss"]) for row in rows) and rows[0]["loss"] > 0


@pytest.mark.check
def test_the_reference_judged_by_itself_has_no_lift_and_no_kl(prepared):
    _, _, config = prepared
    model = models.build(hf.read_config(config.model.path))
    score, params = simulate.judge(config), hf.load(config.model.path, model)
    same = score(params, 0)
    assert tuple(same) == simulate.METRICS
    assert same["world/gold_lift"] == 0.0 and same["world/kl"] == pytest.approx(0.0, abs=1e-5)
    other = params | {"head": {"weight": 1.3 * params["head"]["weight"]}}
    sharper = score(other, 1)
    assert sharper["world/kl"] > 0.1
    assert score(other, 2) == sharper


OUTSIDE = '''
"""A world of one prompt, in which more of "up" is better."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from slpojax.worlds import World

WORDS = {word: i for i, word in enumerate(["<eos>", "go", "up", "down"])}


def tokenizer():
    words = Tokenizer(WordLevel(WORDS, unk_token="<eos>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")


def texts(count, rng):
    return [("go", "".join(rng.choice([" up", " down"], size=rng.integers(1, 4)))) for _ in range(count)]


WORLD = World(
    model={"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    | {"num_attention_heads": 2, "initializer_range": 0.2},
    tokenizer=tokenizer,
    texts=texts,
    prompts=lambda count: ["go"] * count,
    reward=lambda prompt, answer: float(answer.split().count("up")),
    longest=4,
    settings={"steps": 3, "batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 0, "data.row_length": 32}
    | {"data.max_length": 16, "data.max_prompt_length": 4},
    text_count=32, pair_count=40, held_out=8, judged=16,
)
'''


@pytest.mark.check
def test_a_world_outside_of_the_package_trains_and_judges(tmp_path):
    """As a user would: a module on the path, its name on the command line."""
    (tmp_path / "world_of_a_test.py").write_text(OUTSIDE)
    keys = {"world": "world_of_a_test", "output": tmp_path / "run", "data.format": "pairs", "steps": 2}
    keys |= {"batch_size": 8, "data.row_length": 32, "data.max_length": 16, "data.max_prompt_length": 4}
    keys |= {"learning_rate": 1e-2, "warmup_steps": 0, "best_metric": "-eval/world/gold_reward"}
    command = [sys.executable, "-m", "slpojax.train", "--config=configs/base.py"]
    command += [f"--config.{key}={value}" for key, value in keys.items()]
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = metrics.read_jsonl(tmp_path / "run" / "metrics.jsonl", "eval")
    assert [row["step"] for row in rows] == [0, 2] and {"loss", *simulate.METRICS} <= rows[0].keys()
    assert abs(rows[0]["world/kl"]) < 1e-5 < abs(rows[1]["world/kl"]) and rows[0]["world/gold_lift"] == 0
    (folder,) = tmp_path.glob("world_of_a_test-*")
    assert (folder / "hf").is_dir() and (tmp_path / "run" / "hf").is_dir()
    assert "gold reward gained" in done.stdout


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"best_metric": "eval/world/gold_rewrd"},
            r"best_metric 'eval/world/gold_rewrd'.*near: eval/world/gold_reward",
        ),
        ({"best_metric": "-eval/rewards/acuracies"}, r"near: eval/rewards/accuracies"),
        ({"profile": "10-12"}, "config.profile='10-12': expected first:last"),
        ({"reference.mode": "cashed"}, "unknown config.reference.mode 'cashed' .near: cached"),
        ({"wandb": "project"}, r"--config.wandb needs wandb: `pip install 'slpojax\[logging\]'`"),
    ],
)
def test_what_the_configuration_shows_to_be_wrong_is_refused_before_anything_is_made(
    tmp_path, monkeypatch, changes, says
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.chdir(ROOT)
    keys = {"output": tmp_path / "run"} | changes
    command = ["train", "--config=configs/quickstart.py", *(f"--config.{key}={value}" for key, value in keys.items())]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match=says):
        train.main()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.check
@pytest.mark.optimised
@pytest.mark.timeout(900)
def test_slpo_lifts_the_gold_reward_at_little_kl_and_holds_it(tmp_path):
    command = [sys.executable, "-m", "slpojax.train", "--config=configs/quickstart.py", f"--config.output={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True)
    rows = metrics.read_jsonl(tmp_path / "metrics.jsonl", "eval")
    settled = rows[-1]["step"] * 2 / 3
    for row in rows:
        assert row["world/kl"] <= 0.65, row
        # The mean of 1,020 answers has a standard error of 0.04; what the pairs say differs by more from seed to seed.
        assert row["step"] < settled or row["world/gold_lift"] >= 0.4, row

"""The world of reviews: its language, its reward, what it prepares and how it judges."""

import json
import math
import pathlib
import runpy
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from slpojax import hf, metrics, models, settings, train, worlds
from slpojax.worlds import reviews
from slpojax.worlds.reviews import language

ROOT = pathlib.Path(__file__).resolve().parents[1]


def quickstart(output, **changes):
    config = runpy.run_path(str(ROOT / "configs/quickstart.py"))["get_config"]()
    return settings.resolve(config, {"output": str(output), **changes}, choices=train.CHOICES)


def draws(count):
    rng = np.random.default_rng(0)
    return [language.write(topic, rng) for topic, _ in language.prompts(count)]


def test_an_unknown_world_is_refused_with_the_near_one():
    with pytest.raises(ValueError, match="did you mean 'reviews'"):
        worlds.build("review")


def test_every_review_is_within_the_vocabulary_and_the_length():
    words = language.words()
    assert len(set(words)) == len(words) == 52
    written = draws(3000)
    used = set().union(*written, *(prompt.split() for _, prompt in language.prompts(12)))
    assert used == set(words[3:])  # all but padding, EOS and the unknown word
    assert 4 <= min(map(len, written)) <= max(map(len, written)) < language.LONGEST


def test_the_probabilities_of_every_symbol_add_up():
    for rules in language.GRAMMAR.values():
        assert sum(chance for chance, _ in rules) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("review", "value"),
    [
        ("the plot was superb .", 2.0),
        ("the plot was not superb .", -1.4),
        ("the plot is very awful .", -3.0),
        ("i never hated it .", 1.6),
        ("i liked it and the cast is hardly weak .", 0.8 + 0.18),
        ("i liked it but the cast is quite bad , the music was fine .", 0.8 - 1.5 * 0.75 + 0.3),
        ("not but good", 1.5),  # a modifier ends with its clause
        ("very very good", 1.5),  # and does not pile up
        ("", 0.0),
    ],
)
def test_the_gold_reward(review, value):
    assert language.reward(review.split()) == pytest.approx(value)


def test_the_gold_reward_is_centred_and_spreads_over_two_nats():
    gold = np.array([language.reward(review) for review in draws(4000)])
    assert abs(gold.mean()) < 0.15
    assert 1.9 < gold.std() < 2.4


SMALL = {"TEXTS": 40, "PAIRS": 600, "HELD_OUT": 24, "JUDGED": 120, "BATCH": 128}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A world made small, whose reference was never trained: (output, configurations run, what prepare returned)."""
    calls = []

    def untrained(config):
        calls.append(config)
        hf_config = hf.read_config(config.model.path) | {"initializer_range": 0.2}
        model = models.build(hf_config)
        params = jax.jit(model.init)(jax.random.key(config.seed))
        hf.save(pathlib.Path(config.output) / "hf", params, model, hf_config, tokenizer_from=config.model.path)

    output = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(reviews, name, value)
        yield output, calls, reviews.prepare(quickstart(output), untrained)


def stop(config):
    raise InterruptedError


def read(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def test_prepare_writes_texts_tokenizer_and_config(prepared):
    from transformers import AutoTokenizer

    _, (sft,), config = prepared
    assert (sft.objective.name, sft.reference.mode, sft.world) == ("sft.token_mean", "none", "")
    assert len(read(sft.data.path)) == 40 and len(read(sft.data.eval_path)) == 24
    assert config.world == "reviews" and config.data.format == "pairs"
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    for _, prompt in language.prompts(12):
        assert tokenizer(prompt)["input_ids"] == [language.words().index(word) for word in prompt.split()]
        assert tokenizer(prompt)["input_ids"] == language.encode(prompt).tolist()
    assert tokenizer.eos_token_id == language.words().index(language.EOS)
    assert tokenizer.decode(tokenizer(" i liked it .")["input_ids"]) == "i liked it ."


def test_pairs_are_labelled_by_bradley_and_terry(prepared):
    _, _, config = prepared
    pairs = read(config.data.path)
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    gold = np.array([[language.reward(pair[name].split()) for name in ("chosen", "rejected")] for pair in pairs])
    assert gold.tolist() == [[pair["score_chosen"], pair["score_rejected"]] for pair in pairs]
    gap = gold[:, 0] - gold[:, 1]
    gap = gap[gap != 0]
    better = 1 / (1 + np.exp(-np.abs(gap)))  # the chance that the better one was chosen
    assert abs((gap > 0).sum() - better.sum()) < 4 * math.sqrt((better * (1 - better)).sum())
    assert 0.55 < (gap > 0).mean() < 0.98


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


def test_a_second_run_uses_what_is_there_and_other_settings_remake_it(prepared, capsys, tmp_path):
    output, _, config = prepared
    other = {"objective.name": "unpaired.kto", "data.unpair": True, "data.mismatched": True, "steps": 3}
    again = reviews.prepare(quickstart(output, **other), stop)
    assert again.model.path == config.model.path and again.data.path == config.data.path
    assert "found in" in capsys.readouterr().out
    moved = shutil.copytree(output, tmp_path / "elsewhere")
    assert reviews.prepare(quickstart(moved), stop).data.path == str(moved / "reference" / "pairs.train.jsonl")
    (moved / "checkpoints").mkdir()  # a policy that began from the reference that goes
    with pytest.raises(InterruptedError):
        reviews.prepare(quickstart(moved, seed=1), stop)
    assert "other settings" in capsys.readouterr().out
    assert sorted(folder.name for folder in moved.iterdir()) == ["earlier-1", "reference"]
    assert (moved / "earlier-1" / "checkpoints").exists()
    assert (moved / "earlier-1" / "reference" / "pairs.train.jsonl").exists()
    assert not (moved / "reference" / "pairs.train.jsonl").exists()


def test_the_reference_judged_by_itself_has_no_lift_and_no_kl(prepared):
    _, _, config = prepared
    model = models.build(hf.read_config(config.model.path))
    score, params = reviews.scorer(config), hf.load(config.model.path, model)
    same = score(params, 0)
    assert same["world/gold_lift"] == 0.0 and same["world/kl"] == pytest.approx(0.0, abs=1e-5)
    other = params | {"head": {"weight": 1.3 * params["head"]["weight"]}}
    sharper = score(other, 1)
    assert sharper["world/kl"] > 0.1
    assert score(other, 2) == sharper


def test_the_report_shows_both_ends_of_the_run(tmp_path, capsys):
    config = quickstart(tmp_path)
    rows = [{"step": n, "split": "eval", "world/kl": n / 400, "mass/gap_chosen": 0.5} for n in (0, 100, 200)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reviews.report(config)
    shown = capsys.readouterr().out
    assert "slpo.shift" in shown and "0.5" in shown and "0.25" not in shown and "mass/gap_chosen" in shown


@pytest.mark.check
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_slpo_lifts_the_gold_reward_at_little_kl_and_holds_it(tmp_path, seed):
    command = [sys.executable, "-m", "slpojax.train", "--config=configs/quickstart.py"]
    subprocess.run([*command, f"--config.output={tmp_path}", f"--config.seed={seed}"], cwd=ROOT, check=True)
    rows = metrics.read_jsonl(tmp_path / "metrics.jsonl", "eval")
    settled = rows[-1]["step"] * 2 / 3
    for row in rows:
        assert row["world/kl"] <= 0.6, row
        assert row["step"] < settled or row["world/gold_lift"] >= 0.5, row

"""The program with data and references other than pairs beside a frozen model: candidates, labels, games, mixtures."""

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from configs import base
from slpojax import metrics, settings, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("candidates"))


def run(folder, output, **changes):
    values = tiny.changes(folder, output) | {"steps": 3} | changes
    train.train(settings.resolve(base.get_config(), values, choices=train.CHOICES))
    return [
        {"step": row["step"], **{k: v for k, v in row.items() if k == "loss" or "/" in k}}
        for row in metrics.read_jsonl(folder / output / "metrics.jsonl")
    ]


def close(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5, err_msg=name)


RANKED = {
    "data.format": "ranked",
    "data.chat_template": "dialogue",
    "data.candidates": 5,
    "data.row_length": 64,
    "objective.name": "listwise.rnce",
    "selector.name": "mc_kernel",
    "selector.temperature": 0.1,
}


@pytest.mark.check
@pytest.mark.parametrize("selector", [{}, {"selector.picks": 2}], ids=["one pick", "two picks"])
def test_scoring_first_and_a_gradient_through_all_candidates_give_the_same_run(folder, selector):
    changes = RANKED | selector | {"data.path": str(folder / "ranked.jsonl")}
    runs = {way: run(folder, f"{way}{len(selector)}", **changes, selection=way) for way in ("together", "score_first")}
    assert runs["together"][1]["loss"] == pytest.approx(np.log(1 + selector.get("selector.picks", 1)), abs=1e-6)
    for row in runs["score_first"]:
        assert 1 <= row.get("selector/rank", 1) <= 4 and ("selector/effective" in row) == ("selector/rank" in row)
    # At the start margins are rounding, whose sign the two programs need not share.
    signs = ("rewards/accuracies", "selector/rank", "selector/hardest")
    exact = [[{k: v for k, v in row.items() if row["step"] > 1 or k not in signs} for row in runs[way]] for way in runs]
    close(*exact)
    ours, theirs = (load_file(folder / f"{way}{len(selector)}" / "hf" / "model.safetensors") for way in runs)
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)


@pytest.mark.check
def test_scoring_first_goes_on_where_it_stopped(folder):
    changes = RANKED | {"data.path": str(folder / "ranked.jsonl"), "selection": "score_first"}
    whole = run(folder, "whole", **changes, steps=4, checkpoint_every=2)
    run(folder, "parts", **changes, steps=2, checkpoint_every=2)
    parts = run(folder, "parts", **changes, steps=4, checkpoint_every=2)
    assert parts[-1] == whole[-1]


def test_the_kernel_draws_by_the_reward_that_is_trained(folder, capsys, monkeypatch):
    seen = []

    class Enough(Exception):
        """The selector is known, and nothing of what follows is looked at."""

    def describe(config, method, layout):
        shown(config, method, layout)
        seen.append(method.selector)
        raise Enough

    shown = train.training.describe
    monkeypatch.setattr(train.training, "describe", describe)
    for beta, kernel in ({}, 0.1), ({"objective.beta": 0.5}, 0.5), ({"objective.beta": 0.5, "selector.beta": 0.2}, 0.2):
        with pytest.raises(Enough):
            run(folder, "followed", **RANKED, **beta, **{"data.path": str(folder / "ranked.jsonl")})
        assert seen[-1].hyperparameters["beta"] == kernel
        assert ("selector mc_kernel: beta=" in capsys.readouterr().out) == ("selector.beta" not in beta)


@pytest.mark.check
def test_kto_on_pairs(folder):
    changes = {"objective.name": "unpaired.kto", "data.unpair": True, "data.mismatched": True, "data.rows": "0:20"}
    rows = run(folder, "kto", **changes)
    assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-6) and rows[-1]["loss"] != rows[0]["loss"]


@pytest.mark.check
def test_the_divergence_at_every_token_is_zero_at_the_start(folder):
    rows = run(folder, "tdpo", **{"objective.name": "token_level.tdpo2", "reference.mode": "online"})
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-6) and rows[-1]["loss"] != rows[0]["loss"]


@pytest.mark.check
def test_a_second_frozen_model(folder):
    run(folder, "iterate", **{"steps": 2})
    changes = {"objective.name": "games.inpo", "reference.previous": str(folder / "iterate" / "hf")}
    rows = run(folder, "inpo", **changes)
    assert np.isfinite(rows[-1]["loss"])
    assert list((folder / "inpo" / "reference_cache").glob("previous.train-*.npz"))


@pytest.mark.check
def test_diagnostics_look_at_the_gradients(folder):
    run(folder, "diagnosed", diagnostics=4)
    for row in metrics.read_jsonl(folder / "diagnosed" / "metrics.jsonl", "eval"):
        assert -1 <= row["diagnostic/cosine"] <= 1 and row["diagnostic/norm_chosen"] > 0
        assert row["diagnostic/change_chosen"] > row["diagnostic/change_rejected"]


@pytest.mark.check
def test_a_mixture_logs_its_terms(folder):
    rows = run(folder, "mixture", **{"objective.name": "dpo.sigmoid + 0.1 * sft.token_mean", "accumulate": 1})
    for row in rows:
        whole = row["loss/dpo.sigmoid"] + 0.1 * row["loss/sft.token_mean"]
        assert row["loss"] == pytest.approx(whole, rel=1e-5)


@pytest.mark.check
def test_a_moving_reference_moves_when_it_should_and_is_resumed(folder):
    moving = {"reference.mode": "moving", "reference.every": 2, "reference.mix": 1.0, "eval_every": 1}
    whole = run(folder, "moving", **moving, steps=4, checkpoint_every=3)
    held_out = [row for row in metrics.read_jsonl(folder / "moving" / "metrics.jsonl", "eval")]
    margins = [row["rewards/margins"] for row in held_out]
    assert [margin == 0 for margin in margins] == [True, False, True, False, True]
    run(folder, "moved", **moving, steps=3, checkpoint_every=3)
    assert run(folder, "moved", **moving, steps=4, checkpoint_every=3)[-1] == whole[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective.name": "unpaired.kto"},
            r"unpaired.kto asks for labels.*data.unpair=True --config.data.mismatched=True",
        ),
        (
            {"objective.name": "unpaired.kto", "data.unpair": True},
            r"unpaired.kto reads 2 responses .*, the data gives 1; set --config.data.mismatched=True",
        ),
        ({"objective.name": "margin.odpo"}, r"margin.odpo asks for the candidates' scores.*data.format=ranked"),
        (
            {"objective.name": "token_level.tdpo1"},
            r"token_level.tdpo1 asks for kl at every token.*--config.reference.mode=online",
        ),
        ({"objective.name": "games.inpo"}, r"games.inpo compares with a second frozen model.*reference.previous"),
        (
            {"data.candidates": 1},
            r"dpo.sigmoid reads 2 responses of an example, the data gives 1; set --config.data.candidates=2",
        ),
        ({"objective.name": "reference_free.tpo"}, r"reference_free.tpo reads 3 responses .*, the data gives 2"),
        (
            RANKED | {"objective.name": "reference_free.tpo", "data.path": "ranked.jsonl", "selector.beta": 1},
            r"reads 3 responses .*, of which selector mc_kernel leaves 2 of 5; set --config.selector.picks=2",
        ),
        ({"data.candidates": 1, "selector.name": "uniform"}, r"selector.picks = 1: 0 of the 1 candidates"),
        (
            {k: RANKED[k] for k in RANKED if k.startswith("data.")}
            | {"objective.name": "anchored.sppo", "data.path": "ranked.jsonl"},
            r"anchored.sppo reads .* as probabilities to win, .*train data go from 0 to 5 \(20 of 20 .* that of row 0",
        ),
        ({"objective.name": "sft.token_mean", "data.unpair": True, "diagnostics": 4}, r"config.diagnostics=4 compares"),
        ({"objective.name": "self_supervised.spo"}, r"spo tells .*data.degrade is 0; set --config.data.degrade=3"),
        ({"data.degrade": 1}, r"data.degrade=1 adds copies .*, which objective dpo.sigmoid does not read; set it to 0"),
        (
            {"objective.name": "self_supervised.spo", "data.degrade": 1, "selector.name": "uniform"},
            r"selector uniform picks among the copies .* set --config.selector.name=everything",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_data_or_the_reference_cannot_give_is_refused_before_anything_is_compiled(
    folder, changes, message, monkeypatch
):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(train.frozen, "prepare", lambda *args: pytest.fail("the data was scored"))
    with pytest.raises(ValueError, match=message):
        run(folder, "refused", **changes)

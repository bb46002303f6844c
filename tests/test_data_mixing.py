"""Mixtures: how many examples of each source a pass holds, which, what is reported of them, and what is refused."""

import collections
import json

import numpy as np
import pytest
import tiny
from data_tools import load, make_tokenizer, pair

from configs import base
from slpojax import bench, data, metrics, parts, resuming, settings, train
from slpojax.data import mixing


@pytest.mark.parametrize(
    ("weights", "expected"),
    [({"a": 1, "b": 1}, (7, 7)), ({"a": 3, "b": 1}, (20, 6)), ({"a": 0.5, "b": 2}, (1, 7)), ({"b": 9}, (20, 7))],
)
def test_weights_are_shares_of_the_longest_pass_that_repeats_nothing(weights, expected):
    available = {"a": 20, "b": 7}
    got = mixing.sizes(available, weights, {})
    assert tuple(got.values()) == expected
    # By trial: the longest pass whose shares, rounded down, every source can give, and no share is one short.
    longest = max(n for n in np.arange(0, 100, 1 / 64) if all(n * weights[x] <= available[x] for x in weights))
    assert all(0 <= got[x] - int(longest * weights[x]) <= 1 for x in weights)
    assert any(got[x] == available[x] for x in weights)


def test_a_count_is_exact_and_a_source_with_neither_gives_all():
    assert mixing.sizes({"a": 20, "b": 7, "c": 4}, {}, {"b": 3, "c": 9}) == {"a": 20, "b": 3, "c": 9}
    with pytest.raises(
        ValueError, match="config.data.mixture.a.weight=0.01 leaves it none of its 20 examples.*raise it"
    ):
        mixing.sizes({"a": 20, "b": 7}, {"a": 0.01, "b": 1}, {})


def test_every_example_comes_as_often_as_every_other_or_once_more():
    for count in (1, 5, 7, 16, 21):
        times = np.bincount(mixing.draw(7, count, 3, "a"), minlength=7)
        assert times.sum() == count and set(times) <= {count // 7, count // 7 + 1}
    drawn = collections.Counter(tuple(mixing.draw(7, 3, seed, "a").tolist()) for seed in range(500))
    assert len(drawn) == 35 and max(drawn.values()) < 40  # all 35 subsets of three of seven; 14 of each are expected
    assert mixing.draw(7, 3, 0, "a").tolist() == mixing.draw(7, 3, 0, "a").tolist()


@pytest.fixture
def sources(tmp_path):
    """Two sources, of 6 and of 4 pairs, and the token ids of each one's chosen response."""
    found = {}
    for name, count in (("hh", 6), ("tulu", 4)):
        (tmp_path / name).mkdir()
        found[name] = load(tmp_path / name, [pair(chosen=f" {name} {i}") for i in range(count)] + [pair(chosen="")])
    return found


def test_a_mixture_holds_what_was_drawn_and_reports_a_part_for_each(sources):
    counts = {"hh": 4, "tulu": 6}
    mixed, report = mixing.mix(sources, counts, seed=1, line="a mixture")
    texts = [make_tokenizer().decode(example.responses[0]) for example in mixed]
    expected = [
        f" {name} {i}<eos>" for name in counts for i in mixing.draw(*({"hh": (6, 4), "tulu": (4, 6)}[name]), 1, name)
    ]
    assert texts == expected and mixed.names == ("hh", "tulu")
    assert {name: len(found) for name, found in mixed.by_source().items()} == counts
    assert mixed.places()[-1] == "3 of tulu" and mixed.take([9]).places() == ["3 of tulu"]
    assert report.read == 12 and report.kept == 10
    assert report.noted["examples of hh not drawn"].times == 2 and report.noted["of tulu drawn again"].times == 2
    assert report.parts["hh"].dropped["empty response"].times == 1 and report.parts["tulu"].kept == 4
    shown = data.render(report)
    assert shown.index("source    hh") < shown.index("source    tulu") < shown.index("a mixture")
    assert data.as_dict(report)["data/source/tulu/kept"] == 4


def test_what_is_drawn_of_a_source_does_not_depend_on_the_others(sources):
    both, _ = mixing.mix(sources, {"hh": 3, "tulu": 2}, seed=1, line="")
    alone, _ = mixing.mix({"tulu": sources["tulu"]}, {"tulu": 2}, seed=1, line="")
    np.testing.assert_array_equal(both.row[both.by_source()["tulu"]], alone.row)


def test_sources_of_other_kinds_are_refused_by_name(tmp_path, sources):
    record = {"prompt": "a", "completion": "b", "label": True}
    labelled = load(tmp_path, [record], format="unpaired", candidates=1)
    with pytest.raises(ValueError, match="^config.data.mixture: kto has labels .* and hh has none; mix sources of one"):
        mixing.mix(sources | {"kto": labelled}, {"hh": 1, "tulu": 1, "kto": 1}, seed=0, line="")
    single = load(tmp_path, [{"prompt": "a", "response": "b"}], format="prompt_response", candidates=1)
    with pytest.raises(ValueError, match="^config.data.mixture: an example of hh has 2 responses and one of sft 1"):
        mixing.mix(sources | {"sft": single}, {"hh": 1, "tulu": 1, "sft": 1}, seed=0, line="")


# ---- by keys ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny.make(tmp_path_factory.mktemp("mixing"))
    lines = (folder / "pairs.jsonl").read_text().splitlines(keepends=True)
    (folder / "a.jsonl").write_text("".join(lines[:10]))
    (folder / "b.jsonl").write_text("".join(lines[10:]))
    scored = [json.loads(line) | {"score_chosen": 1.0, "score_rejected": 0.0} for line in lines[:8]]
    (folder / "scored.jsonl").write_text("".join(json.dumps(record) + "\n" for record in scored))
    return folder


def configuration(folder, output, **changes):
    mixture = {
        **{"a.path": folder / "a.jsonl", "a.weight": 1, "a.eval_rows": "8:10", "a.rows": "0:8"},
        **{"b.path": folder / "b.jsonl", "b.weight": 2, "b.eval_rows": "10:13", "b.rows": "0:10"},
    }
    values = tiny.changes(folder, output) | {"data.path": "", "data.rows": "", "data.eval_rows": ""}
    values |= {f"data.mixture.{key}": str(value) for key, value in mixture.items()}
    return settings.resolve(base.get_config(), values | changes, choices=train.CHOICES)


@pytest.mark.check
def test_a_run_trains_on_a_mixture_and_evaluates_each_source(folder, capsys):
    train.train(configuration(folder, "run", steps=3))
    shown = capsys.readouterr().out
    assert "a mixture: 5 of the 8 examples of a, 10 of the 10 examples of b" in shown and "source    b" in shown
    [start, end] = metrics.read_jsonl(folder / "run" / "metrics.jsonl", "eval")
    for row in (start, end):
        for name in ("loss", "rewards/margins", "logps/chosen"):
            both = (2 * row[f"source/a/{name}"] + 3 * row[f"source/b/{name}"]) / 5
            assert both == pytest.approx(row[name], rel=1e-5, abs=1e-6)
    assert end["source/a/loss"] != end["source/b/loss"]
    # A step's means are of the examples that its batch has of a source: a whole number, the same for all metrics.
    for row in metrics.read_jsonl(folder / "run" / "metrics.jsonl", "train"):
        sources = [of for of in ("a", "b") if f"source/{of}/loss" in row]
        assert sources and "each/loss" not in row
        counts = []
        for name in ("loss", "logps/chosen", "logps/rejected"):
            a, b = (row.get(f"source/{of}/{name}", 0.0) for of in ("a", "b"))
            if abs(a - b) > 1e-3:  # before the first step all losses are log 2
                counts.append(4 * (row[name] - b) / (a - b))
        assert len(counts) > 1
        np.testing.assert_allclose(counts, np.round(counts[-1]), atol=1e-2)
    # A source that moved is the same; another share is not.
    (folder / "moved.jsonl").write_text((folder / "a.jsonl").read_text())
    train.train(configuration(folder, "run", steps=3, **{"data.mixture.a.path": str(folder / "moved.jsonl")}))
    assert "resumed behind step 3 of 3" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"data.mixture.a.weight was 1.0 and is 2.0.*Set this back"):
        train.train(configuration(folder, "run", steps=3, **{"data.mixture.a.weight": 2}))


def test_a_resumed_run_may_have_moved_files_and_no_other_shares(folder):
    run = configuration(folder, "run").to_dict()
    moved = configuration(folder, "run", **{"data.mixture.a.path": "elsewhere.jsonl"}).to_dict()
    assert resuming.differences(run, moved) == {} and resuming.digest(run) == resuming.digest(moved)
    changed = configuration(folder, "run", **{"data.mixture.b.count": 3, "data.mixture.b.weight": 0}).to_dict()
    assert resuming.differences(run, changed) == {
        "data.mixture.b.count": (0, 3),
        "data.mixture.b.weight": (2.0, 0.0),
    }
    assert resuming.digest(run) != resuming.digest(changed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.path": "x.jsonl"}, "config.data.path and config.data.mixture both say what is trained on"),
        ({"data.eval_rows": "0:2"}, "config.data.eval_split and eval_rows read data.path.*data.mixture.NAME.eval_rows"),
        ({"data.mixture.c.weight": 1}, "config.data.mixture.c.path is empty: give a hub name"),
        ({"data.mixture.a.count": 3}, "config.data.mixture.a has a weight and a count; set one"),
        ({"data.mixture.a.weight": 0}, "config.data.mixture.a has neither weight nor count, and b has a weight"),
        ({"data.mixture.a.path": "nowhere.jsonl"}, "config.data.mixture.a: data.path: no such file: nowhere.jsonl"),
        (
            {"data.mixture.a.format": "hh"},
            "config.data.mixture.a: .* as hh, .*no usable record of 8: 8 no shared prompt",
        ),
        ({"data.mixture.a.rows": "50:"}, "config.data.mixture.a: .*hold no record"),
        ({"best_metric": "eval/source/c/loss"}, "eval/source/a/loss"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mixture_that_cannot_be_meant_is_refused_by_its_key(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        train.train(configuration(folder, "refused", steps=1, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.mixture.a.weight": -1}, "config.data.mixture.a.weight = -1.0: expected a number from 0"),
        ({"data.mixture.a.count": -1}, "config.data.mixture.a.count = -1: expected a whole number from 0"),
        ({"data.mixture.a.wieght": 1}, "unknown key of config.data.mixture.a 'wieght' .near: weight.; there are path,"),
        ({"data.mixture.a b.path": "x"}, "config.data.mixture = 'a b': expected names of letters"),
        ({"data.mixture": "x"}, "config.data.mixture: a group of keys; set those of a source"),
        ({"data.mixture.a": "x"}, "config.data.mixture.a: a group of keys; set those of a source"),
        ({"data.mixture.a.weight": "many"}, "config.data.mixture.a.weight: got 'many', expected a float"),
    ],
    ids=str,
)
def test_a_key_of_a_source_is_checked_as_any_other(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        configuration(folder, "refused", **changes)


def test_scores_that_one_source_lacks_are_missed_by_its_name(folder):
    changes = {"data.mixture.a.path": str(folder / "scored.jsonl"), "data.mixture.a.rows": "0:6"}
    changes |= {"data.mixture.a.eval_rows": "6:8", "objective.name": "margin.odpo"}
    with pytest.raises(ValueError, match="objective margin.odpo asks for .* train data of data.mixture.b has none"):
        train.train(configuration(folder, "refused", **changes))


def test_without_weights_a_file_gives_all_and_one_held_out_file_may_serve_all(folder):
    changes = {"data.mixture.a.weight": 0, "data.mixture.b.weight": 0, "data.eval_path": str(folder / "scored.jsonl")}
    config = configuration(folder, "none", **changes)
    trained, held_out = parts.load(config, bench.make(config))
    assert len(trained.examples) == 18 and trained.examples.names == ("a", "b")
    assert len(held_out.examples) == 8 and held_out.examples.names == ()
    assert any("trained on, too" in note for note in held_out.report.noted)


def test_a_mixture_of_one_source_is_that_source(folder):
    plain = tiny.changes(folder, "plain") | {"data.path": str(folder / "a.jsonl"), "data.rows": "0:8"}
    mixture = {"data.mixture.a.path": str(folder / "a.jsonl"), "data.mixture.a.rows": "0:8", "data.path": ""}
    runs = [plain | {"data.eval_rows": "8:10"}, plain | mixture | {"data.mixture.a.eval_rows": "8:10"}]
    runs[1] |= {"data.rows": "", "data.eval_rows": ""}
    configs = [settings.resolve(base.get_config(), run, choices=train.CHOICES) for run in runs]
    alone, mixed = (parts.load(config, bench.make(config)) for config in configs)
    assert [part.examples.digest() for part in alone] == [part.examples.digest() for part in mixed]
    assert all((one.examples.row == other.examples.row).all() for one, other in zip(alone, mixed, strict=True))

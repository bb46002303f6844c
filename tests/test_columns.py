"""The cache of a frozen model's log-probs: when it is read, what makes it worthless, and what a kill leaves of it."""

import json
import os
import re
import shutil
import threading

import jax
import numpy as np
import pytest
import tiny

from configs import base
from slpojax import bench, cached, columns, grid, scores, settings, train, training
from slpojax import frozen as frozen_models
from slpojax.base import ABSENT, Frozen, Logps
from slpojax.data import pipeline
from slpojax.parts import load as load_parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("reference"))


@pytest.fixture
def said(monkeypatch):
    """What was told, one line after the other."""
    lines = []
    monkeypatch.setattr("slpojax.log.say", lambda text, console=None: lines.append(text))
    return lines


def configuration(folder, cache, **changes):
    values = (
        tiny.changes(folder, "output")
        | {"reference.cache": str(cache), "reference.batch_size": 2, "mesh.fsdp": 1}
        | changes
    )
    return settings.resolve(base.get_config(), values, choices=train.CHOICES)


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    """A folder with the columns of a whole run, and the columns."""
    path = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        return path, frozen(configuration(folder, path), Model(), patch)


NEAREST = "no cached reference.train for these settings; nearest differs in"


class Model:
    """Stands for a frozen model: log-probs that tell example, candidate and token, and how often it was asked."""

    def __init__(self, dies=None, wrong=None):
        self.calls, self.dies, self.wrong = 0, dies, wrong

    def __call__(self, params, batch):
        self.calls += 1
        if self.calls == self.dies:
            raise KeyboardInterrupt
        index, length = np.asarray(batch.index), np.asarray(batch.length)
        _, k, t = np.indices((*length.shape, 8))
        token = -np.float32(1 + np.maximum(index, 0)[:, None, None] + k / 10 + t / 100)
        token[index == self.wrong] = np.nan
        there = t < length[..., None]
        return Logps(np.where(there, token, 0), np.where(there, np.float32(0.5) * token, ABSENT), length)


def frozen(config, model, monkeypatch):
    """The columns of both parts as a run gets them, but that `model` stands for the frozen one."""
    monkeypatch.setattr(bench, "load_params", lambda *_, **__: None)
    monkeypatch.setattr(bench, "reference_params", lambda config, bench, base: None)
    monkeypatch.setattr(scores, "scorer", lambda *what: lambda params, batch: (model(params, batch), {}))
    made, parts, scan = prepared(config, 1)
    return frozen_models.prepare(config, made, training.method(config), scan, parts).parts


def prepared(config, devices):
    """The bench, the parts of the data, and the sizes of the batches that go through them once."""
    made = bench.make(config, devices=jax.devices()[:devices])
    parts = load_parts(config, made)
    layout = training.layout(config, training.method(config), [part.examples for part in parts], made.grid)
    return made, parts, layout.scan


def same(ours, theirs):
    for name in ("token", "other", "start"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def names(cache):
    """What the files of a cache are called, without their digests; all of them are whole."""
    assert all(re.fullmatch(r".*-[0-9a-f]{12}\.npz", name) for name in os.listdir(cache))
    return sorted(name.rpartition("-")[0] for name in os.listdir(cache))


def expected(examples):
    """The log-probs of `Model`, response by response."""
    return [
        -np.float32(1 + i + k / 10 + np.arange(n) / 100)
        for i, lengths in enumerate(np.asarray(examples.lengths.response))
        for k, n in enumerate(lengths)
    ]


def test_every_log_prob_is_its_example_s_and_the_second_call_reads(folder, tmp_path, said, monkeypatch):
    config, model = configuration(folder, tmp_path), Model()
    pairs, held_out = frozen(config, model, monkeypatch)
    assert model.calls == 10 + 3 and "reference log-probs (train): computing; nothing cached yet" in said
    for part in (pairs, held_out):
        np.testing.assert_array_equal(part.ref.token, np.concatenate(expected(part.examples)))
        np.testing.assert_array_equal(part.ref.other, part.ref.token / 2)
    assert names(tmp_path) == ["reference.eval", "reference.train"]

    again = frozen(config, model, monkeypatch)
    assert model.calls == 10 + 3
    assert said.count(f"reference log-probs (train): read from {tmp_path}") == 1
    same(again[0].ref, pairs.ref)
    same(again[1].ref, held_out.ref)


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"seed": 1}, "weights"),
        ({"model.weights": "load"}, "weights"),
        ({"model.path": "wider"}, "model"),
        ({"model.dtype": "bfloat16"}, "dtype"),
        ({"model.attention": "dense"}, "attention"),
        ({"data.tokenizer": "other"}, "tokenizer, examples"),
        ({"data.max_length": 15}, "data.max_length"),
        ({"data.max_prompt_length": 7}, "data.max_prompt_length"),
        ({"data.too_long": "drop"}, "data.too_long"),
        ({"data.bos": "never"}, "data.bos"),
        ({"data.ties": "keep"}, "data.ties"),
        ({"data.unpair": True}, "data.unpair, examples"),
        ({"data.mismatched": True}, "data.mismatched, examples"),
        ({"data.candidates": 1}, "data.candidates, examples"),
        ({"data.rows": "0:19"}, "examples"),
        ({"data.rows": "1:21"}, "examples"),
    ],
    ids=lambda value: "=".join(map(str, next(iter(value.items())))) if isinstance(value, dict) else "",
)
def test_what_the_numbers_depend_on_makes_it_anew_and_is_named(
    folder, made, tmp_path, said, monkeypatch, changes, differing
):
    for name, change in (("other", ("tokenizer.json", '"w29"', '"W29"')), ("wider", ("config.json", "24", "32"))):
        if name in changes.values():
            changes = {key: str(copied(folder, tmp_path / name, *change)) for key in changes}
    cache, model = shutil.copytree(made[0], tmp_path / "cache"), Model()
    pairs, _ = frozen(configuration(folder, cache, **changes), model, monkeypatch)
    assert model.calls
    assert f"reference log-probs (train): computing; {NEAREST}: {differing}" in said
    np.testing.assert_array_equal(pairs.ref.token, np.concatenate(expected(pairs.examples)))


def copied(folder, new, file, old, by):
    """A copy of the model's folder in which one file is another."""
    new.mkdir()
    for name in os.listdir(folder / "model"):
        text = (folder / "model" / name).read_text()
        (new / name).write_text(text.replace(old, by) if name == file else text)
    return new


def test_what_the_numbers_do_not_depend_on_reads(folder, made, said, monkeypatch):
    changes = {"reference.batch_size": 3, "batch_size": 5, "data.row_length": 64, "learning_rate": 1.0}
    frozen(configuration(folder, made[0], **changes), None, monkeypatch)
    assert f"reference log-probs (train): read from {made[0]}" in said


@pytest.mark.parametrize("dies", [1, 3, 6, 10, 12])
def test_a_kill_costs_a_part_at_most_and_changes_no_number(folder, made, tmp_path, said, monkeypatch, dies):
    """Ten batches of the training part, two to a part; a batch is counted in when the next one is on its way."""
    monkeypatch.setattr(columns, "_BATCHES", 2)
    config = configuration(folder, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        frozen(config, Model(dies=dies), monkeypatch)
    parts = max(0, dies - 2) // 2 if dies <= 10 else 0
    assert len([*tmp_path.glob("reference.train-*.part")]) == parts

    said.clear()
    model = Model()
    parted = frozen(config, model, monkeypatch)
    assert model.calls == (10 - 2 * parts if dies <= 10 else 0) + 3
    known = f"reference log-probs (train): computing; {4 * parts} of 20 examples are cached from a run that was stopped"
    assert (known in said) == (parts > 0)
    for ours, theirs in zip(parted, made[1], strict=True):
        same(ours.ref, theirs.ref)
    assert names(tmp_path) == ["reference.eval", "reference.train"]


def test_parts_under_another_key_are_not_used_and_stay(folder, tmp_path, said, monkeypatch):
    monkeypatch.setattr(columns, "_BATCHES", 2)
    other = configuration(folder, tmp_path, seed=1)
    with pytest.raises(KeyboardInterrupt):
        frozen(other, Model(dies=7), monkeypatch)
    model = Model()
    pairs, _ = frozen(configuration(folder, tmp_path), model, monkeypatch)
    assert model.calls == 13
    assert f"reference log-probs (train): computing; {NEAREST}: weights" in said
    np.testing.assert_array_equal(pairs.ref.token, np.concatenate(expected(pairs.examples)))
    model = Model()
    frozen(other, model, monkeypatch)
    assert model.calls == 13 - 4, "the other run's two parts of two batches are still used"
    assert names(tmp_path) == ["reference.eval"] * 2 + ["reference.train"] * 2


def test_a_killed_run_may_go_on_with_batches_of_another_size(folder, tmp_path, said, monkeypatch):
    monkeypatch.setattr(columns, "_BATCHES", 2)
    with pytest.raises(KeyboardInterrupt):
        frozen(configuration(folder, tmp_path), Model(dies=7), monkeypatch)
    pairs, _ = frozen(configuration(folder, tmp_path, **{"reference.batch_size": 3}), Model(), monkeypatch)
    np.testing.assert_array_equal(pairs.ref.token, np.concatenate(expected(pairs.examples)))


def test_a_torn_cache_or_part_is_computed_anew_and_reported(folder, tmp_path, said, monkeypatch):
    monkeypatch.setattr(columns, "_BATCHES", 2)
    with pytest.raises(KeyboardInterrupt):
        frozen(configuration(folder, tmp_path), Model(dies=8), monkeypatch)
    (part,) = tmp_path.glob("reference.train-*.0001.part")
    part.write_bytes(part.read_bytes()[:-30])
    model = Model()
    pairs, _ = frozen(configuration(folder, tmp_path), model, monkeypatch)
    assert model.calls == 10 - 4 + 3
    report = f"8 of 20 examples are cached from a run that was stopped; damaged, and computed anew: {part}"
    assert any(report in line for line in said)
    np.testing.assert_array_equal(pairs.ref.token, np.concatenate(expected(pairs.examples)))


@pytest.mark.parametrize(
    "change",
    [
        {"token": np.ones(7, np.float32), "other": np.ones(7, np.float32)},
        {"token": np.ones(10)},
        {"token": np.ones((1, 10), np.float32)},
        {"example": np.int32([1000, 1])},
        {"example": np.int32([-1, 0])},
        {"example": np.int32([0])},
        {"more": np.ones(1)},
        {"token": np.full(10, np.nan, np.float32)},
    ],
    ids=str,
)
def test_arrays_that_do_not_fit_the_examples_are_computed_anew(tmp_path, said, change):
    lengths = np.int32([[2, 3], [1, 4]])
    whole = columns.Piece(np.arange(2, dtype=np.int32), np.ones(10, np.float32), np.ones(10, np.float32))
    cached.save(cached.Entry(tmp_path, "reference.train", {"a": "1"}), whole._asdict() | change)
    fresh = whole._replace(token=np.zeros(10, np.float32))
    made = columns.load_or_compute(
        tmp_path, "reference", "train", {"a": "1"}, lengths, lambda done: [fresh], said.append
    )
    assert re.search(r"not of these examples, and computed anew: .*reference.train-\w+\.npz", said[0])
    assert not made.token.any()


def test_log_probs_that_are_not_finite_or_missing_are_an_error(folder, tmp_path, said, monkeypatch):
    with pytest.raises(ValueError, match=r"of \d+ response tokens of a batch have no finite log-prob.*check its weigh"):
        frozen(configuration(folder, tmp_path), Model(wrong=7), monkeypatch)
    assert not [*tmp_path.glob("reference.train-*.npz")]
    lengths, piece = np.ones((3, 1), int), columns.Piece(np.array([0, 2]), np.ones(2, np.float32), np.ones(2))
    with pytest.raises(ValueError, match="1 of 3 examples were in no batch, the first one is 1"):
        columns.load_or_compute(tmp_path, "reference", "eval", {}, lengths, lambda done: [piece], said.append)


def test_a_batch_is_fetched_once_the_next_one_is_on_its_way():
    seen = []

    class Result:
        def __init__(self, n):
            self.n = n
            seen.append(f"dispatch {n}")

        def __array__(self, dtype=None, copy=None):
            seen.append(f"fetch {self.n}")
            return np.array(self.n)

    assert [int(x) for x in grid.gathered(Result(n) for n in range(3))] == [0, 1, 2]
    assert seen == ["dispatch 0", "dispatch 1", "fetch 0", "dispatch 2", "fetch 1", "fetch 2"]


def test_batches_are_packed_beside_the_main_thread(folder, tmp_path, said, monkeypatch):
    threads, make = [], pipeline.make_batch

    def noted(*arguments):
        threads.append(threading.current_thread())
        return make(*arguments)

    monkeypatch.setattr(pipeline, "make_batch", noted)
    frozen(configuration(folder, tmp_path), Model(), monkeypatch)
    assert len(threads) == 13 and threading.main_thread() not in threads


@pytest.mark.parametrize(
    ("changes", "examples"),
    [
        ({}, 6),  # 4 x 4, but the held-out part has 6 examples
        ({"data.eval_rows": "20:21"}, 4),  # one batch of training: a tiny held-out part makes no tiny batches
        ({"data.eval_rows": ""}, 10),  # up to 4 x 4: 20 examples in two batches
        ({"data.eval_rows": "", "accumulate": 2}, 7),  # up to 4 x 2: in three
        ({"reference.batch_size": 5}, 5),
        ({"reference.batch_size": 64}, 20),
    ],
    ids=str,
)
def test_how_many_examples_are_scored_at_once(folder, tmp_path, said, changes, examples):
    config = configuration(folder, tmp_path, **{"reference.batch_size": 0} | changes)
    assert prepared(config, 2)[2].examples == examples


def test_the_reference_s_weights_leave_the_devices(folder, tmp_path, said, monkeypatch):
    """A model of its own, so that nothing else holds its weights."""
    config = configuration(folder, tmp_path)
    made, parts, scan = prepared(config, 1)
    function, during = scores.scorer(made.model, scan, made.grid), []

    def noted(params, batch):
        during.append(held())
        return function(params, batch)

    monkeypatch.setattr(scores, "scorer", lambda *what: noted)
    before, drawn = held(), jax.eval_shape(made.model.init, jax.random.key(0))
    weights = sum(4 * leaf.size for leaf in jax.tree.leaves(drawn))
    (pairs, _), stays, moving, _ = frozen_models.prepare(config, made, training.method(config), scan, parts)
    assert stays == Frozen() and moving is None and np.isfinite(pairs.ref.token).all() and (pairs.ref.token < 0).all()
    assert min(during) >= before + weights, "the weights were never there"
    assert held() <= before + 64, "weights, or batches, are still on the devices"


@pytest.mark.parametrize(
    ("change", "own"), [({"rope_theta": 5e5}, True), ({"num_hidden_layers": 2}, True), ({"unsloth_fixed": True}, False)]
)
@pytest.mark.parametrize("mode", ["cached", "online"])
def test_a_frozen_model_is_that_of_its_own_config(folder, tmp_path, said, monkeypatch, mode, change, own):
    path = tmp_path / "reference"
    shutil.copytree(folder / "model", path)
    (path / "config.json").write_text(json.dumps(tiny.MODEL | change))
    config = configuration(folder, tmp_path / "cache", **{"reference.path": str(path), "reference.mode": mode})
    made, parts, scan = prepared(config, 1)
    loaded, scored = [], []
    monkeypatch.setattr(bench, "load_params", lambda folder, model, *_, **__: loaded.append(model) or "weights")

    def scorer(model, *_):
        scored.append(model)
        return lambda params, batch: (Model()(params, batch), {})

    monkeypatch.setattr(scores, "scorer", scorer)
    result = frozen_models.prepare(config, made, training.method(config), scan, parts)
    assert loaded and all((model is not made.model) == own for model in (*loaded, *scored))
    assert bool(scored) == (mode == "cached") and (result.model is not None) == (own and mode == "online")


def held():
    """Bytes of all arrays on the devices."""
    return sum(array.nbytes for array in jax.live_arrays())

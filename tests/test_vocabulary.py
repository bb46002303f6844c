"""Whether model and tokens belong together: ids beyond the vocabulary, tokenizers that differ, what ends a response."""

import json
import shutil

import numpy as np
import pytest
import tiny
from fault_tools import attempt
from test_train import configuration

from slpojax import bench, data, frozen, parts, training, vocabulary
from slpojax.data import Example, build


@pytest.fixture
def folder(tmp_path):
    return tiny.make(tmp_path)


def examples(*pairs, first_row=0):
    made = [
        Example(np.int32(prompt), tuple(np.int32(r) for r in responses), (0.0,) * len(responses), first_row + i)
        for i, (prompt, responses) in enumerate(pairs)
    ]
    return build(made, candidates=len(pairs[0][1]))


@pytest.mark.parametrize(
    ("pair", "row"),
    [(([1, 31], ([2], [3])), 8), (([1], ([2, 31], [3])), 8), (([1], ([2], [3, 31])), 8)],
    ids=["prompt", "response", "EOS"],
)
def test_an_id_that_the_model_does_not_have_is_refused_with_its_row(pair, row):
    known = ([1, 30], ([2], [30]))
    every = {"train": examples(known), "eval": examples(known, pair, known, first_row=row - 1)}
    vocabulary.require_ids(every, 32, key="model.path", tokenizer=None)
    kind, message = attempt(lambda: vocabulary.require_ids(every, 31, key="model.path", tokenizer=range(40)))
    assert kind == "refused"
    for word in (f"eval data, row {row}: token id 31", "config.model.path knows 31", "has 40 ids", "data.tokenizer"):
        assert word in message


def test_a_run_stops_at_an_id_that_the_policy_does_not_have_before_anything_is_compiled(folder, monkeypatch):
    file = folder / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 30}))
    config = configuration(folder, "out")
    monkeypatch.setattr(training, "layout", None)
    with pytest.raises(
        ValueError, match=r"train data, row \d+: token id 30, but the model of config.model.path knows 30"
    ):
        parts.load(config, bench.make(config))


def other(folder, name: str, *, config=(), **tokens: str):
    """A copy of the model's folder with another config.json, and other words in its tokenizer."""
    path = folder / name
    shutil.copytree(folder / "model", path)
    (path / "config.json").write_text(json.dumps(tiny.MODEL | dict(config)))
    text = (path / "tokenizer.json").read_text()
    for word, new in tokens.items():
        text = text.replace(f'"{word}"', f'"{new}"')
    (path / "tokenizer.json").write_text(text)
    return path


def test_a_tokenizer_is_compared_by_what_the_ids_of_the_data_stand_for(folder):
    tokenizer = data.load_tokenizer(str(folder / "model"))
    used, made_by = examples(([1, 2], ([3], [4]))), folder / "model"

    def compare(path):
        listed = [used]
        return attempt(lambda: vocabulary.require_same_tokens(listed, tokenizer, made_by, path, key="reference.path"))

    assert compare(folder / "model") == ("accepted", "")
    assert compare(other(folder, "unused", w20="W20")) == ("accepted", "")
    kind, message = compare(other(folder, "differs", w2="W2"))
    assert kind == "refused" and "config.reference.path" in message and "of 4 ids in the data 1 are" in message
    (folder / "differs" / "tokenizer.json").unlink()
    (folder / "differs" / "tokenizer_config.json").unlink()
    assert "has no tokenizer" in compare(folder / "differs")[1]


@pytest.mark.parametrize(
    ("responses", "expected"),
    [
        ([[5, 0], [6, 7, 0]], (0,)),  # each closed by EOS
        ([[5, 9, 8], [6, 9, 8]], (9,)),  # a turn's end and a line break, as ChatML writes them
        ([[5, 6], [7, 8]], ()),  # cut
        ([[5, 9, 8], [6, 0]], (0,)),
    ],
    ids=["EOS", "turn", "cut", "both"],
)
def test_what_ends_most_responses_is_what_training_teaches_to_stop_with(folder, responses, expected):
    tokenizer = data.load_tokenizer(str(folder / "model"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["w8"]} if expected == (9,) else {})
    assert vocabulary.ends(examples(*(([0, 1], (r, r)) for r in responses)), tokenizer) == expected


@pytest.mark.parametrize(
    ("change", "mode", "message"),
    [
        ({"vocab_size": 64}, "cached", "config.reference.path: .*other has a vocabulary of 64 .* the policy of 31"),
        ({"rope_theta": 5e5}, "moving", "held against the policy's config.json, differs in rope.*moving"),
        ({"num_hidden_layers": 2}, "moving", "differs in layers"),
    ],
)
def test_a_frozen_model_that_cannot_be_compared_or_mixed_is_refused(folder, change, mode, message):
    path = other(folder, "other", config=change)
    config = configuration(folder, "out", **{"reference.path": str(path), "reference.mode": mode})
    made, method = bench.make(config), training.method(config)
    loaded = parts.load(config, made)
    scan = training.layout(config, method, [part.examples for part in loaded], made.grid).scan
    with pytest.raises(ValueError, match=message):
        frozen.prepare(config, made, method, scan, loaded)

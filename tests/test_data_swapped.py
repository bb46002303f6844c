"""Noisy copies of the preferred response, and pools: what they hold, and what is refused."""

import json
import pathlib

import numpy as np
import pytest
import tiny

from slpojax import data
from slpojax.data import formats, swapping


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    folder = tiny.make(tmp_path_factory.mktemp("tiny"))
    tokenizer = data.load_tokenizer(str(folder / "model"))

    def load(records, seed=0, **settings):
        path = pathlib.Path(folder) / "pool.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return data.load(
            data.Source(str(path)), data.settings({"format": "pool", **settings}), tokenizer=tokenizer, seed=seed
        )

    return load


POOL = {"prompt": "w1 w2", "responses": [" w3 w4 w5 w3", " w6", " w7 w8"], "scores": [1.0, 2.0, -3.0]}


def test_a_pool_keeps_the_order_of_its_record_whatever_the_scores(load):
    examples, report = load([POOL], candidates=3)
    assert examples[0].score == (1.0, 2.0, -3.0) and [len(r) for r in examples[0].responses] == [5, 2, 3]
    assert "the preferred response has not the highest score" in data.render(report)
    without = {name: value for name, value in POOL.items() if name != "scores"}
    assert load([without], candidates=3)[0][0].score == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"responses": "w3"}, "responses is a string, expected an array of strings"),
        ({"responses": ["w3", 4]}, "responses is an array, expected an array of strings"),
        ({"scores": [1.0]}, "scores is an array, expected an array of 3 numbers"),
    ],
)
def test_a_pool_of_another_shape_is_an_error_that_shows_no_text(change, says):
    with pytest.raises(TypeError, match=says) as error:
        formats.pool(POOL | change)
    assert "w3" not in str(error.value)


def test_a_noisy_copy_is_the_preferred_response_with_two_tokens_in_each_others_place(load):
    examples, report = load([POOL] * 40, candidates=3, swapped=True)
    assert examples.candidates == 4
    seen = set()
    for example in (examples[i] for i in range(len(examples))):
        best, copy = example.responses[0], example.responses[-1]
        different = np.flatnonzero(best != copy)
        assert len(best) == len(copy) and best[-1] == copy[-1] == 0, "the EOS stays"
        assert len(different) == 2 and sorted(best[different]) == sorted(copy[different])
        assert example.score[-1] == -3.0, "as low as the lowest"
        seen.add(tuple(copy.tolist()))
    assert len(seen) == 5, "of the six pairs of places one holds equal tokens; all others are drawn"
    assert "noisy copy" in data.render(report)
    again = load([POOL] * 40, candidates=3, swapped=True)[0]
    assert all(np.array_equal(examples[i].responses[-1], again[i].responses[-1]) for i in range(40))
    other = load([POOL] * 40, candidates=3, swapped=True, seed=1)[0]
    assert any(not np.array_equal(examples[i].responses[-1], other[i].responses[-1]) for i in range(40))


def test_a_response_without_two_different_tokens_has_no_copy(load):
    pools = [POOL | {"responses": [" w3 w3", " w6", " w7"]}, POOL | {"responses": [" w3", " w6", " w7"]}]
    examples, report = load(pools, candidates=3, swapped=True)
    assert [len(examples[i].responses[-1]) for i in range(2)] == [0, 0]
    assert "no two different tokens to swap" in data.render(report)


def test_every_pair_of_places_is_drawn_alike():
    rng, response = np.random.default_rng(0), np.array([1, 2, 3, 0])
    drawn = [tuple(swapping.swap(response, rng).tolist()) for _ in range(3000)]
    counts = np.array([drawn.count(copy) for copy in ((2, 1, 3, 0), (3, 2, 1, 0), (1, 3, 2, 0))])
    assert counts.sum() == 3000 and abs(counts - 1000).max() < 4 * np.sqrt(3000 * 2 / 9)


@pytest.mark.parametrize("settings", [{"candidates": 1}, {"unpair": True}, {"degrade": 2}])
def test_what_has_no_preferred_response_beside_others_is_refused(load, settings):
    with pytest.raises(ValueError, match="data.swapped adds a noisy copy of the preferred response; expected"):
        load([POOL], **{"swapped": True, **settings})

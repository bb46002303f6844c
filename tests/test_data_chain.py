"""The chain of transforms: what is dropped and noted on the way, and transforms that are added from outside."""

import functools

import data_tools
import pytest
from data_tools import decoded, pair

from slpojax import data
from slpojax.data import candidates, chain, loading, report
from slpojax.data.formats import Unusable


@pytest.fixture
def load(tmp_path):
    return functools.partial(data_tools.load, tmp_path)


def no_questions(setup):
    """Drop the prompts that ask."""

    def one(text):
        if text.parsed.prompt.endswith("?"):
            raise Unusable("a question")
        return text._replace(notes=(*text.notes, "no question"))

    return data.each(one)


def only_english(setup):
    """Drop records of another language, before they are parsed."""

    def transform(items, tally):
        for row, record in items:
            if record["language"] == "en":
                yield row, record
            else:
                tally.drop(row, "another language")

    return transform


def test_a_transform_of_one_text_is_added_from_outside(load):
    at = data.CHAIN.index(candidates.keep)
    stored, made = load(
        [pair("a?"), pair("b"), pair("c")], transforms=(*data.CHAIN[:at], no_questions, *data.CHAIN[at:])
    )
    assert [decoded(example)[0] for example in stored] == ["b", "c"]
    assert made.dropped["a question"].rows == (0,) and made.noted["no question"].rows == (1, 2)


def test_a_transform_of_the_records_is_added_from_outside(load):
    records = [pair("a") | {"language": "fr"}, pair("b") | {"language": "en"}]
    stored, made = load(records, transforms=(only_english, *data.CHAIN))
    assert stored.row.tolist() == [1] and made.dropped["another language"].rows == (0,)


def test_a_transform_of_the_examples_is_added_from_outside(load):
    def heavier(setup):
        def one(group):
            return group._replace(
                examples=tuple(example._replace(weight=float(len(example.prompt))) for example in group.examples)
            )

        return data.each(one)

    stored, _ = load([pair("a"), pair("bcd")], transforms=(*data.CHAIN, heavier))
    assert stored.weight.tolist() == [1, 3]


def test_added_candidates_are_named_in_the_report(load):
    def echo(setup):
        def one(group):
            added = tuple(e._replace(responses=(*e.responses, e.prompt), score=(*e.score, 0.0)) for e in group.examples)
            return group._replace(examples=added, added=(*group.added, "echo"))

        return data.each(one)

    stored, made = load([pair("abc")], transforms=(*data.CHAIN, echo))
    assert stored.candidates == 3 and made.sizes["echo"] == (3.0, 3, 3)
    assert made.candidates == (2.0, 2, 2, 0.0)  # it does not count as one


def test_what_is_dropped_is_not_noted():
    def even(text):
        if text.row % 2:
            raise Unusable("odd")
        return text

    items = [data.Text(row, row, None, notes=("seen", "seen")) for row in range(3)]
    tally, settle = report.tally(), chain.settle(data.Setup(data.Source(""), *data.Settings(), None, 0))
    left = list(settle(chain.each(even)(items, tally), tally))
    assert [text.row for text in left] == [0, 2] and not any(text.notes for text in left)
    assert dict(tally.dropped) == {"odd": [1]} and dict(tally.noted) == {"seen": [0, 0, 2, 2]}


def test_settings_are_refused_before_anything_is_read(load):
    for settings, message in (
        ({"format": "pear"}, "unknown data.format 'pear'"),
        ({"degrade": -1}, "data.degrade=-1"),
        ({"candidates": 0}, "data.candidates=0: expected 1"),
    ):
        with pytest.raises(ValueError, match=message):
            data_tools.load_path("nowhere.jsonl", tokenizer=data_tools.make_tokenizer(), **settings)


def test_a_transform_that_is_not_asked_for_takes_no_part(load):
    setup = data.Setup(data.Source(""), *data.Settings(), data_tools.make_tokenizer(), 0)
    absent = [make.__name__ for make in loading.CHAIN if make(setup) is None]
    assert absent == ["penalise", "vary", "pair", "separate", "unpair", "mismatch", "degrade", "swapped", "join"]


def test_labels_of_some_records_alone_are_refused_where_they_meet():
    groups = [data.Group(row, (), ordered=True, scored=False, labelled=bool(row)) for row in range(2)]
    setup = data.Setup(data.Source("mixed.jsonl"), *data.Settings(), None, 0)
    with pytest.raises(ValueError, match="^mixed.jsonl: only some of the records have a label"):
        loading._store(groups, setup)

"""What no parser can read is named by row, file and line, and by its kind; never by its text."""

import functools
import re

import data_tools
import pytest
from data_tools import pair

from slpojax.data.formats import Parsed

SECRET = "quixotry"
ASK = [{"role": "user", "content": SECRET}]


@pytest.fixture
def load(tmp_path):
    return functools.partial(data_tools.load, tmp_path)


def stumbles(record):
    """A parser with a fault, whose error would show the row."""
    return int(record["prompt"])


def forgets(record):
    """A parser that returns no example."""
    return record["prompt"]


def mixes(record):
    """A parser that joins text with messages."""
    return Parsed(record["prompt"], (({"role": "assistant", "content": "a"},),))


@pytest.mark.parametrize(
    ("line", "kind"), [(None, "null"), (5, "a number"), (SECRET, "a string"), ([SECRET], "an array.* .json")]
)
@pytest.mark.parametrize("name", ["pairs", "helpsteer"])
def test_a_line_that_is_no_object(load, line, kind, name):
    good = pair() if name == "pairs" else {"prompt": "a", "response": "b", "helpfulness": 1}
    with pytest.raises(ValueError, match=rf"^row 1 \(.*data.jsonl, line 2\) is {kind}") as error:
        load([good, line], format=name)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("pairs", pair(prompt=5), "prompt is int, expected a string"),
        ("pairs", {"prompt": SECRET}, "it has no field 'chosen'; its fields are prompt; formats: hh,"),
        ("pairs", {f"{i}": SECRET for i in range(99)}, "its fields are 0, 1, .* 19 and 79 more; formats"),
        ("ranked", {"messages": ASK, "responses": SECRET}, "responses is a string, expected an array of objects"),
        ("ranked", {"messages": ASK, "responses": [SECRET]}, "responses is an array of something else"),
        ("ranked", {"messages": ASK, "responses": [{"rank": 0, "text": 4}]}, "text is a number, expected a string"),
        ("ranked", {"messages": ASK, "responses": [{"text": SECRET}]}, "it has no field 'rank'"),
        ("nectar", {"prompt": "a", "answers": [{"rank": 1, "answer": {}}]}, "answer is an object, expected a string"),
        (
            "ultrafeedback",
            {"instruction": "a", "completions": [{"overall_score": 1, "response": [SECRET]}]},
            "response is an array, expected a string",
        ),
        ("helpsteer", {"prompt": 5, "response": SECRET, "helpfulness": 1}, "expected string"),
        ("messages", {"messages": SECRET}, "messages"),
        ("conversational", {"prompt": [SECRET], "chosen": 5, "rejected": 6}, "messages"),
        ("test_data_parsing.stumbles", pair(SECRET), r"ValueError in .*test_data_parsing.py, line \d+; its fields"),
        ("test_data_parsing.forgets", pair(SECRET), "the parser returned a str, expected formats.Parsed"),
        ("test_data_parsing.mixes", pair(SECRET), "prompt and responses are partly text and partly messages"),
    ],
)
def test_a_record_of_another_format(load, name, record, message):
    place = r"^row 0 \(.*data.jsonl, line 1\) is no record of data.format='" + re.escape(name) + "': .*"
    with pytest.raises(ValueError, match=place + message) as error:
        load([record], format=name)
    assert SECRET not in str(error.value)
